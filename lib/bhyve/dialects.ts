/** Which form to ask in, and when another may be tried (protocol.md section 3). */
import { Buffer } from 'node:buffer'
import { CheckpointError } from '../errors.js'
import { restorablePathBytes, structPathBytes } from '../names.js'
import type { Dialect } from '../types.js'
import type { Located } from './locate.js'

export interface System {
  platform: NodeJS.Platform
  /** `uname -r`. */
  release: string
}

/** The dialects to try at this socket, in order. A second one only after `mayTryNext`. */
export function dialectsFor(
  located: Located,
  wanted: Dialect | 'auto',
  known: Dialect | undefined,
  system: System,
): Dialect[] {
  if (located.kind === 'struct') return ['struct']
  if (wanted !== 'auto') return [wanted]
  if (known !== undefined) return [known]
  return isFreeBSD(system, 14) ? ['descriptor'] : ['path', 'descriptor']
}

function isFreeBSD({ platform, release }: System, major: number): boolean {
  return platform === 'freebsd' && Number.parseInt(release, 10) >= major
}

/**
 * A suspend on an older FreeBSD is never asked twice: a `path` bhyve that had just failed would write the VM's
 * state into its own working directory.
 */
export function mayFallBack(operation: 'checkpoint' | 'suspend', system: System): boolean {
  return operation === 'checkpoint' || system.platform !== 'freebsd'
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
