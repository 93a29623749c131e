/** Decides which dialect to use for a VM, and whether to try a second one (protocol.md section 3). */
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
 * Returns the dialects to try at this socket, in order. On FreeBSD only one dialect is tried. A `path` bhyve that could
 * not create a file, for example because the inode table is full, seems to be of another dialect. A second request in
 * dialect `descriptor` would make it write the guest RAM into its own working directory. Other systems run only
 * simulators, so a second dialect can follow there.
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
 * True only if it is certain. A `descriptor` bhyve rejects a `path` request without effect, but a `path` bhyve would
 * write the files of a `descriptor` request into the wrong directory. The release 14.0-CURRENT can be either, because
 * all development versions between 13.0 and 14.0 had this name.
 */
function takesDescriptors(release: string): boolean {
  return Number.parseInt(release, 10) >= 14 && !release.startsWith('14.0-CURRENT')
}

/** The dialect that the bhyve of this system's release uses. Undefined if the release does not determine it. */
export function dialectOfSystem({ platform, release }: System): Dialect | undefined {
  // These development branches contained two generations of bhyve, so the kernel's release does not determine which.
  if (platform !== 'freebsd' || /^(?:13\.0-(?:CURRENT|STABLE)|14\.0-CURRENT)/.test(release)) return undefined
  const [major = 0, minor = 0] = release.split('.').map((part) => Number.parseInt(part, 10))
  if (major >= 14) return 'descriptor'
  if (major !== 13) return undefined
  return minor === 0 ? 'struct' : 'path'
}

/**
 * Rejects a VM whose bhyve could not open the path in the request. `struct` and `path` requests contain the path of the
 * file, which leads through directories that only our user can enter. A bhyve of another user would create no file and
 * would seem to be of another dialect.
 */
export function assertReachable(
  dialects: readonly Dialect[],
  located: Located,
  system: System,
  vm: string,
): void {
  const isOthers = located.ownerUid !== 0 && located.ownerUid !== process.geteuid?.()
  if (!isOthers || dialects.every((dialect) => dialect === 'descriptor')) return
  // Other systems run only simulators. If a simulator of another dialect writes files elsewhere, that does no harm.
  if (system.platform !== 'freebsd' && dialects.includes('descriptor')) return
  const uid = String(located.ownerUid)
  throw new CheckpointError(
    'ERR_PERMISSION',
    `The bhyve of VM '${vm}' runs as uid ${uid}, which cannot open files in the checkpoint directory (private to uid ` +
      `${String(process.geteuid?.())}). Nothing was sent to bhyve. Run as uid ${uid} or, if bhyve is from FreeBSD 14 or ` +
      "later, pass the option 'dialect' as 'descriptor'",
    { vm, path: located.socketPath },
  )
}

/** `struct` and `path` requests contain the full path of the file. bhyve copies it into a buffer of fixed size. */
export function assertRequestFits(dialect: Dialect, requestPath: string, vm: string): void {
  if (requestFits(dialect, requestPath)) return
  const limit = pathLimitOf(dialect)
  const bytes = Buffer.byteLength(requestPath)
  throw new CheckpointError(
    'ERR_PATH_TOO_LONG',
    `The bhyve of VM '${vm}' (dialect '${dialect}') accepts paths of at most ${String(limit)} bytes, but ` +
      `'${requestPath}' is ${String(bytes)} bytes long. Choose a shorter checkpoint directory`,
    { vm, path: requestPath },
  )
}

export function requestFits(dialect: Dialect, requestPath: string): boolean {
  return dialect === 'descriptor' || Buffer.byteLength(requestPath) <= pathLimitOf(dialect)
}

function pathLimitOf(dialect: Dialect): number {
  return dialect === 'struct' ? structPathBytes : restorablePathBytes
}
