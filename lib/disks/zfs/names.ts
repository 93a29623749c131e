/** Names of datasets and snapshots, and the user properties of this library. */
import { createHash } from 'node:crypto'

/** The hold that keeps a snapshot from being destroyed by other tools. */
export const holdTag = 'bhyve-checkpoint'

/** User properties. They are local properties of a snapshot or dataset, never inherited ones. */
export const property = {
  vm: 'bhyve-checkpoint:vm',
  id: 'bhyve-checkpoint:id',
  directory: 'bhyve-checkpoint:directory',
  /** The dataset that the snapshot was taken of. A rollback moves the snapshot to another dataset. */
  dataset: 'bhyve-checkpoint:dataset',
  /** What a rollback has begun. It stays on the dataset that the rollback keeps. */
  rollback: 'bhyve-checkpoint:rollback',
  /** On a copy for another VM: the call that has made it. */
  clone: 'bhyve-checkpoint:clone',
  /** On a dataset that was received from another host: the move that has made it. */
  move: 'bhyve-checkpoint:move',
} as const

/** The longest name that every implementation accepts, `@` and the name of the snapshot included. */
const maxNameBytes = 255
/** zfs-fuse limits the value of a user property to 1,024 bytes. */
const maxValueBytes = 1000
/** A first character that is a letter or digit cannot be mistaken for an option. */
const datasetPattern = /^[A-Za-z][A-Za-z0-9_.:-]*(?:\/[A-Za-z0-9_.:][A-Za-z0-9_.: -]*)*$/
const partPattern = /^[A-Za-z0-9_.:-]+$/

export function isDatasetName(name: string): boolean {
  return name.length <= maxNameBytes && datasetPattern.test(name) && !/\/\.+(\/|$)/.test(name)
}

/** True if the text can be the name of a snapshot, or an addition to the last part of a dataset's name. */
export function isNamePart(text: string): boolean {
  return text.length <= maxNameBytes && partPattern.test(text)
}

export function isGuid(text: string): boolean {
  return /^[1-9]\d{0,19}$/.test(text)
}

export function poolOf(dataset: string): string {
  return /^[^/@]*/.exec(dataset)?.[0] ?? dataset
}

export function datasetOf(snapshot: string): string {
  return snapshot.slice(0, snapshot.indexOf('@'))
}

export function isTooLong(name: string): boolean {
  return name.length > maxNameBytes
}

/** A text as the value of a user property: one line, of limited length, different for different texts. */
export function propertyText(text: string): string {
  const line = text.replace(/[\p{Cc}%]/gu, encodeURIComponent)
  if (Buffer.byteLength(line) <= maxValueBytes && line !== '-') return line
  return `%sha256:${createHash('sha256').update(text).digest('hex')}`
}
