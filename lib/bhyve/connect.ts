/** Connects to the checkpoint socket of a VM, or rejects with the reason why that is not possible. */
import os from 'node:os'
import type { Cancellation } from '../base/cancellation.js'
import { CheckpointError, errnoName, systemError } from '../base/errors.js'
import { type Failure, isFailure, loadNative } from '../base/native.js'
import { isKnownToKernel, type Located, type Target } from './locate.js'
import { assertNotPaused, type Peer, vmStateOf } from './peer.js'
import type { PeerMemory } from './peer_memory.js'

/** The time between two attempts while the backlog is full. */
const retryMs = 25

const { EAGAIN, ECONNREFUSED, EPROTOTYPE, ENOENT, EACCES, EPERM } = os.constants.errno

export interface RetryPolicy {
  /** There is no other socket to try. A refused connection is then retried while the VM exists in the kernel. */
  isLast: boolean
  /** For how many milliseconds refused connections are treated as a full backlog. 0: without limit. */
  refusalMs: number
  onFull: () => void
}

/**
 * Returns a connected, non-blocking descriptor, which the caller must close. While the backlog is full, it retries
 * until the call is cancelled. Linux reports a full backlog as EAGAIN. FreeBSD reports ECONNREFUSED, but also for a
 * dead bhyve whose VM still exists in the kernel.
 */
export async function connect(
  located: Located,
  target: Target,
  peers: PeerMemory,
  cancellation: Cancellation,
  retryPolicy: RetryPolicy,
): Promise<number> {
  const native = loadNative()
  const startedAt = performance.now()
  for (;;) {
    cancellation.throwIfCancelled()
    const known = peers.peerAt(located)
    if (known !== undefined) assertNotPaused(known, target)
    const descriptor = native.connectStream(located.socketPath)
    if (!isFailure(descriptor)) return descriptor
    const waitedMs = performance.now() - startedAt
    if (!mayBeFull(descriptor, known, target, retryPolicy, waitedMs))
      throw connectError(descriptor, located, target)
    retryPolicy.onFull()
    await cancellation.pause(retryMs)
  }
}

function mayBeFull(
  { errno }: Failure,
  known: Peer | undefined,
  target: Target,
  { isLast, refusalMs }: RetryPolicy,
  waitedMs: number,
): boolean {
  if (errno === EAGAIN) return true
  if (errno !== ECONNREFUSED || !isLast || !isKnownToKernel(target)) return false
  if (known !== undefined) return vmStateOf(known) !== 'off'
  return refusalMs === 0 || waitedMs < refusalMs
}

function connectError(failure: Failure, { socketPath }: Located, target: Target): CheckpointError {
  const { vm } = target
  const details = { vm, path: socketPath, errno: failure.errno, syscall: failure.syscall }
  switch (failure.errno) {
    case EPROTOTYPE:
      return new CheckpointError(
        'ERR_DIALECT_UNSUPPORTED',
        `'${socketPath}' is a datagram socket, which does not report the end of a checkpoint. Only development ` +
          'versions of bhyve used it, never a release. Upgrade bhyve',
        { ...details, vmState: 'running' },
      )
    case ECONNREFUSED:
    case ENOENT:
      return new CheckpointError(
        'ERR_VM_NOT_RUNNING',
        `VM '${vm}' is not running: no process listens on '${socketPath}'` +
          (isKnownToKernel(target)
            ? `, but the VM still exists in the kernel. If its bhyve process has ended, run bhyvectl --vm=${vm} --destroy`
            : ''),
        { ...details, vmState: isKnownToKernel(target) ? 'unknown' : 'off' },
      )
    case EACCES:
    case EPERM:
      return new CheckpointError(
        'ERR_PERMISSION',
        `No permission to connect to '${socketPath}' (${errnoName(failure.errno)}). ` +
          'Run as the user that bhyve runs as',
        details,
      )
    default:
      return systemError(failure, `Connecting to VM '${vm}'`, socketPath)
  }
}
