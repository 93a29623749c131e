/**
 * Functions that change the text of a manifest. Properties that this release does not know are kept. JSON.stringify() leaves
 * out undefined properties. Runs in the pool.
 */
import type { DiskRecord } from '../base/disk_types.js'
import type { Labels } from '../base/labels.js'
import { isObject, type Manifest, maxRestores, parseObject, type Restore, versionFor } from './manifest.js'
import type { MoveRecord } from './move_record.js'
import type { RecordedArguments } from './recorded_arguments.js'

/** The same manifest with `pinned` changed. */
export function withPin(text: string, pinned: boolean): string {
  return `${JSON.stringify({ ...parseObject(text), pinned }, null, 2)}\n`
}

/** The same manifest with other labels. `of`: the id of the checkpoint, if it is not that of the manifest. */
export function withLabels(text: string, labels: Labels, of: string | undefined): string {
  const { labels: _labels, labelsOf: _labelsOf, ...rest } = parseObject(text) ?? {}
  return `${JSON.stringify({ ...rest, labels, labelsOf: of }, null, 2)}\n`
}

/** The same manifest without bhyve's arguments. Not reformatted if it has none. */
export function withoutArguments(text: string): string {
  const { arguments: recorded, ...rest } = parseObject(text) ?? {}
  return recorded === undefined ? text : `${JSON.stringify(rest, null, 2)}\n`
}

/** The same manifest with disk snapshots. */
export function withDisks(text: string, disks: readonly DiskRecord[]): string {
  const manifest = { ...parseObject(text), disks }
  return `${JSON.stringify({ ...manifest, version: versionFor(manifest) }, null, 2)}\n`
}

/** The same manifest with bhyve's arguments. */
export function withArguments(text: string, recorded: RecordedArguments): string {
  return `${JSON.stringify({ ...parseObject(text), arguments: recorded }, null, 2)}\n`
}

/** The same manifest with another move record, or without one. */
export function withMove(text: string, move: MoveRecord | undefined): string {
  const { move: _, ...rest } = parseObject(text) ?? {}
  const manifest = { ...rest, move }
  return `${JSON.stringify({ ...manifest, version: versionFor(manifest) }, null, 2)}\n`
}

/** The same manifest with another record of a verification, or without one. */
export function withVerified(text: string, verified: Manifest['verified']): string {
  const { verified: _, ...rest } = parseObject(text) ?? {}
  return `${JSON.stringify({ ...rest, verified }, null, 2)}\n`
}

/** The same manifest with one more restore record. */
export function withRestore(text: string, restore: Restore): string {
  const manifest = parseObject(text)
  const restores = [...listFrom(manifest?.restores), restore].slice(-maxRestores)
  return `${JSON.stringify({ ...manifest, restoredAt: restore.at, restores }, null, 2)}\n`
}

/** The same manifest without the restore record of `at`. `previous` becomes `restoredAt` again. */
export function withoutRestore(text: string, at: string, previous: string | undefined): string {
  const { restoredAt: _, restores, ...rest } = parseObject(text) ?? {}
  const others = listFrom(restores).filter((restore) => !isObject(restore) || restore.at !== at)
  const changes = { restoredAt: previous, restores: others.length > 0 ? others : undefined }
  return `${JSON.stringify({ ...rest, ...changes }, null, 2)}\n`
}

/** The same manifest with the restore record of `at` confirmed. */
export function withConfirmed(text: string, at: string): string {
  const manifest = parseObject(text)
  const restores = listFrom(manifest?.restores).map((restore) =>
    isObject(restore) && restore.at === at ? { ...restore, served: true } : restore,
  )
  return `${JSON.stringify({ ...manifest, restores }, null, 2)}\n`
}

function listFrom(value: unknown): unknown[] {
  return Array.isArray(value) ? (value as unknown[]) : []
}
