/** Which form to ask in, and when another may be tried (protocol.md section 3). */
import { Buffer } from 'node:buffer'
import { CheckpointError } from '../base/errors.js'
import { restorablePathBytes, structPathBytes } from '../base/names.js'
import type { Dialect } from '../base/types.js'
import type { Located } from './locate.js'

export interface System {
  platform: NodeJS.Platform
  /** `uname -r`. */
  release: string
}

/**
 * The dialects to try at this socket, in order. On FreeBSD there is only one: a `path` bhyve that could make no file, as
 * with a full inode table, looks like one of another dialect, and would then write the guest's RAM into its own working
 * directory. Elsewhere there are only simulators; a second dialect follows after `mayTryNext`.
 */
export function dialectsFor(
  located: Located,
  wanted: Dialect | 'auto',
  known: Dialect | undefined,
  system: System,
): Dialect[] {
  if (located.kind === 'struct') return ['struct']
  if (wanted !== 'auto') return [wanted]
  if (known !== undefined) return [known]
  if (system.platform !== 'freebsd') return ['path', 'descriptor']
  return takesDescriptors(system.release) ? ['descriptor'] : ['path']
}

/**
 * False where it is not certain: a `descriptor` bhyve refuses a `path` request and is left as it was, a `path` bhyve
 * would serve a `descriptor` request in the wrong place. 14.0-CURRENT was every tree between 13.0 and 14.0.
 */
function takesDescriptors(release: string): boolean {
  return Number.parseInt(release, 10) >= 14 && !release.startsWith('14.0-CURRENT')
}

/**
 * `struct` and `path` name the file by its path, which leads through folders that are ours alone: a bhyve of
 * another user could not open it, would make no file, and would look like one of another dialect.
 */
export function assertReachable(
  dialects: readonly Dialect[],
  located: Located,
  system: System,
  vm: string,
): void {
  const isOthers = located.ownerUid !== 0 && located.ownerUid !== process.geteuid?.()
  if (!isOthers || dialects.every((dialect) => dialect === 'descriptor')) return
  // Elsewhere there is nothing but simulators, and what one of another dialect writes astray harms nobody.
  if (system.platform !== 'freebsd' && dialects.includes('descriptor')) return
  throw new CheckpointError(
    'ERR_PERMISSION',
    `the bhyve of VM '${vm}' runs as uid ${String(located.ownerUid)} and may be one that is given a path, which it ` +
      "could not reach: ask as that user, or name the dialect 'descriptor' if it is FreeBSD 14's or later",
    { vm, path: located.socketPath },
  )
}

/** `struct` and `path` name the file by its whole path, in buffers of bhyve's. */
export function assertRequestFits(dialect: Dialect, requestPath: string, vm: string): void {
  const limit = dialect === 'struct' ? structPathBytes : restorablePathBytes
  const bytes = Buffer.byteLength(requestPath)
  if (dialect === 'descriptor' || bytes <= limit) return
  throw new CheckpointError(
    'ERR_PATH_TOO_LONG',
    `this VM's bhyve (dialect '${dialect}') takes paths of at most ${String(limit)} bytes; '${requestPath}' has ` +
      `${String(bytes)}: choose a shorter checkpoint directory`,
    { vm, path: requestPath },
  )
}
