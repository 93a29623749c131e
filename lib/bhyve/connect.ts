/** A connection to a VM's socket, by a peer that is trusted, or the reason why there is none. */
import os from 'node:os'
import type { Cancellation } from '../base/cancellation.js'
import { CheckpointError, errnoName, systemError } from '../base/errors.js'
import { type Failure, isFailure, loadNative } from '../base/native.js'
import { isKnownToKernel, type Located, type Target } from './locate.js'
import { assertNotPaused, type Peer, vmStateOf } from './peer.js'
import type { PeerMemory } from './peer_memory.js'

/** How long to wait before knocking again at a full backlog. */
const retryMs = 25

const { EAGAIN, ECONNREFUSED, EPROTOTYPE, ENOENT, EACCES, EPERM } = os.constants.errno

export interface RetryPolicy {
  /** There is no other socket to try: a refusal need not be the end. */
  isLast: boolean
  /** How long refusals in a row are taken for a full backlog, in milliseconds; 0: for ever. */
  refusalMs: number
  onFull: () => void
}

/**
 * Connects: a non-blocking descriptor, the caller's to close. A full backlog is waited for until the call is cancelled: EAGAIN on Linux; on FreeBSD ECONNREFUSED,
 * which a dead bhyve gives too, also while its VM is still in the kernel.
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
        `'${socketPath}' is a datagram socket, as only development trees between FreeBSD releases had: it gives no ` +
          'sign when a checkpoint is done. Upgrade bhyve',
        { ...details, vmState: 'running' },
      )
    case ECONNREFUSED:
    case ENOENT:
      return new CheckpointError(
        'ERR_VM_NOT_RUNNING',
        `VM '${vm}' is not running: nobody listens at '${socketPath}' any more` +
          (isKnownToKernel(target) ? `, though the kernel still has it (bhyvectl --vm=${vm} --destroy)` : ''),
        { ...details, vmState: isKnownToKernel(target) ? 'unknown' : 'off' },
      )
    case EACCES:
    case EPERM:
      return new CheckpointError(
        'ERR_PERMISSION',
        `no permission to connect to '${socketPath}' (${errnoName(failure.errno)}): run as bhyve's user or as root`,
        details,
      )
    default:
      return systemError(failure, `connecting to VM '${vm}'`, socketPath)
  }
}
