/** A name of its own for a stage whose wanted name is taken, or must not be. Runs in the pool. */
import { Buffer } from 'node:buffer'
import { checkpointNameBytes, memorySuffix, restorablePathBytes, structPathBytes } from '../../base/names.js'
import type { Directory } from '../../fs/directory.js'
import { type Intent, renameIntent, writerOf } from './intent.js'
import { gather } from './stage_files.js'
import { freshId } from './staging_entries.js'

/** A stage that recovery works at, and where. */
export interface StageDirectories {
  directory: Directory
  staging: Directory
  stage: Directory
  id: string
}

/** The record first: whoever comes after a crash brings the files under its name. */
export function moveToFreshName(directories: StageDirectories, intent: Intent): Intent {
  if (hasFreshName(directories, intent)) return intent
  const { stage } = directories
  const renamed = renameIntent(stage, intent, freshName(directories, intent.wanted ?? intent.name))
  gather(stage, renamed.name)
  return renamed
}

/** An earlier attempt has found one. */
function hasFreshName({ directory }: StageDirectories, { name, wanted }: Intent): boolean {
  return wanted !== undefined && directory.statusIfAny(name + memorySuffix) === undefined
}

/** `<name>-<id>`, the name cut where a file name, or a path that `bhyve -r` can open, would get too long. */
function freshName({ directory, staging, stage }: StageDirectories, name: string): string {
  const pathBytes = writerOf(stage)?.dialect === 'struct' ? structPathBytes : restorablePathBytes
  for (;;) {
    const ending = `-${freshId(staging)}`
    const inboxPath = pathBytes - Buffer.byteLength(directory.pathOf(memorySuffix))
    const fresh = cut(name, Math.min(checkpointNameBytes, inboxPath) - ending.length) + ending
    if (directory.statusIfAny(fresh + memorySuffix) === undefined) return fresh
  }
}

/** At most so many bytes of UTF-8, no character cut in two. */
function cut(text: string, bytes: number): string {
  const characters = Array.from(text)
  while (Buffer.byteLength(characters.join('')) > bytes && characters.length > 1) characters.pop()
  return characters.join('')
}
