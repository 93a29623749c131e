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
