/** A connection to a VM's socket, by a peer that is trusted, or the reason why there is none. */
import os from 'node:os'
import type { Cancellation } from '../cancellation.js'
import { CheckpointError, errnoName, systemError } from '../errors.js'
import { type Failure, isFailure, loadNative } from '../native.js'
import { isKnownToKernel, type Located, type Place } from './locate.js'

export interface Peer {
  uid: number
  /** -1 where the system does not tell. */
  pid: number
  /** Tells two processes with the same pid apart; undefined where it cannot be known. */
  startedAt: string | undefined
}

export interface Connection {
  /** Connected, non-blocking, ours to close. */
  descriptor: number
  peer: Peer
}

/** How long to wait before knocking again at a full backlog. */
const retryMs = 25

const { EAGAIN, ECONNREFUSED, EPROTOTYPE, ENOENT, EACCES, EPERM } = os.constants.errno

/**
 * Connects. A full backlog (EAGAIN on Linux, ECONNREFUSED on FreeBSD, where a dead VM gives that too) is waited
 * for until the call is cancelled; `onFull` is told each time.
 */
export async function connect(
  located: Located,
  place: Place,
  cancellation: Cancellation,
  onFull: () => void,
): Promise<Connection> {
  const native = loadNative()
  for (;;) {
    cancellation.throwIfCancelled()
    const descriptor = native.connectStream(located.socketPath)
    if (!isFailure(descriptor)) return { descriptor, peer: peerOf(descriptor) }
    if (!isFullBacklog(descriptor, place)) throw connectError(descriptor, located, place)
    onFull()
    await cancellation.pause(retryMs)
  }
}

function isFullBacklog({ errno }: Failure, place: Place): boolean {
  return errno === EAGAIN || (errno === ECONNREFUSED && isKnownToKernel(place))
}

function peerOf(descriptor: number): Peer {
  const native = loadNative()
  const peer = native.peerOf(descriptor)
  if (isFailure(peer)) {
    native.close(descriptor)
    throw systemError(peer, "asking for the peer's credentials")
  }
  const status = peer.pid === -1 ? undefined : native.processStatus(peer.pid)
  return { ...peer, startedAt: status === undefined || isFailure(status) ? undefined : status.startedAt }
}

function connectError(failure: Failure, { socketPath }: Located, place: Place): CheckpointError {
  const { vm } = place
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
        `VM '${vm}' is not running: nobody listens at '${socketPath}' any more`,
        { ...details, vmState: 'off' },
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
