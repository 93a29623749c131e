/** The bhyve arguments that a manifest can contain. They may contain passwords: nothing prints them. */
import { Buffer } from 'node:buffer'

/** `arguments` of a manifest. */
export interface RecordedArguments {
  /** bhyve's arguments without `-r`. */
  words: readonly string[]
  /** The absolute path of the directory in which bhyve resolves relative paths. */
  directory: string
  /** The indexes of the words that contain a password. For people and tools that read the manifest. */
  secrets: readonly number[]
}

/** Bounds the manifest, of which every listing reads the head. */
export const recordedMaxBytes = 64 * 1024

/** The size of the record in a manifest, approximately. */
export function recordedBytes(recorded: RecordedArguments): number {
  return Buffer.byteLength(JSON.stringify(recorded))
}

/** Undefined if the value is not such a record. */
export function recordedArgumentsFrom(value: unknown): RecordedArguments | undefined {
  if (typeof value !== 'object' || value === null) return undefined
  const { words, directory, secrets } = value as Record<string, unknown>
  if (!isArrayOf(words, isWord) || !isWord(directory) || !directory.startsWith('/')) return undefined
  const recorded = { words, directory, secrets: isArrayOf(secrets, isIndex) ? secrets : [] }
  return recordedBytes(recorded) <= recordedMaxBytes ? recorded : undefined
}

function isArrayOf<T>(value: unknown, isMember: (member: unknown) => member is T): value is T[] {
  return Array.isArray(value) && value.every(isMember)
}

function isWord(value: unknown): value is string {
  return typeof value === 'string' && !value.includes('\0')
}

function isIndex(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0
}
