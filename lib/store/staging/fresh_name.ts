/** Gives the checkpoint in a stage a fresh name if the wanted name is taken or must not be used. Runs in the pool. */
import { Buffer } from 'node:buffer'
import { checkpointNameBytes, memorySuffix, restorablePathBytes, structPathBytes } from '../../base/names.js'
import type { Directory } from '../../fs/directory.js'
import { type Intent, renameIntent, writerOf } from './intent.js'
import { gather } from './stage_files.js'
import { freshId } from './staging_entries.js'

/** A stage that recovery handles, and the directories that contain it. */
export interface StageDirectories {
  directory: Directory
  staging: Directory
  stage: Directory
  id: string
}

/**
 * Gives the checkpoint a fresh name, unless it has one. The new name is written into the intent record before the files
 * are renamed, so that recovery can rename the remaining files after a crash.
 */
export function moveToFreshName(directories: StageDirectories, intent: Intent): Intent {
  if (hasFreshName(directories, intent)) return intent
  const { stage } = directories
  const renamed = renameIntent(stage, intent, freshName(directories, intent.wanted ?? intent.name))
  gather(stage, renamed.name)
  return renamed
}

/** Whether an earlier attempt has already chosen a fresh name that is still free. */
function hasFreshName({ directory }: StageDirectories, { name, wanted }: Intent): boolean {
  return wanted !== undefined && directory.statusIfAny(name + memorySuffix) === undefined
}

/**
 * `<name>-<id>`. `<name>` is shortened if a file name, or the path for `bhyve -r`, would otherwise be too long
 * (protocol.md section 6).
 */
function freshName({ directory, staging, stage }: StageDirectories, name: string): string {
  const pathBytes = writerOf(stage)?.dialect === 'struct' ? structPathBytes : restorablePathBytes
  for (;;) {
    const ending = `-${freshId(staging)}`
    const nameBytes = pathBytes - Buffer.byteLength(directory.pathOf(memorySuffix))
    const fresh = cut(name, Math.min(checkpointNameBytes, nameBytes) - ending.length) + ending
    if (directory.statusIfAny(fresh + memorySuffix) === undefined) return fresh
  }
}

/** Shortens the text to a maximum number of bytes in UTF-8, without splitting a character. */
function cut(text: string, bytes: number): string {
  const characters = Array.from(text)
  while (Buffer.byteLength(characters.join('')) > bytes && characters.length > 1) characters.pop()
  return characters.join('')
}
