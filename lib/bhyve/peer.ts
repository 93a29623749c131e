/** The bhyve process behind a socket: whether it is trusted, alive, and not paused. */
import os from 'node:os'
import { CheckpointError, isExhausted, systemError } from '../base/errors.js'
import { type Failure, isFailure, loadNative, type ProcessStatus } from '../base/native.js'
import type { VmState } from '../base/types.js'
import type { Located, Target } from './locate.js'

const { ESRCH } = os.constants.errno

export interface Peer {
  uid: number
  /** -1 if the system does not provide it. */
  pid: number
  /** Distinguishes processes that had the same pid. Undefined if it is unknown. */
  startedAt: string | undefined
}

/** Returns the process at the other end of a connection. */
export function peerOf(descriptor: number): Peer {
  const native = loadNative()
  const peer = native.peerOf(descriptor)
  if (isFailure(peer)) throw systemError(peer, "Reading the peer's credentials")
  if (peer.pid === -1) return { ...peer, startedAt: undefined }
  const status = native.processStatus(peer.pid)
  if (!isFailure(status)) return { ...peer, startedAt: status.startedAt }
  // Do not continue without the start time: the process would count as a different or an invisible one.
  if (isExhausted(status)) throw systemError(status, `Reading the status of process ${String(peer.pid)}`)
  return { ...peer, startedAt: undefined }
}

/**
 * Rejects a peer that is not trusted, or that is neither root nor the owner of the socket. The staging directory was
 * created for the owner of the socket, and another user must not get access to it. Root has access anyway.
 */
export function assertTrusted(peer: Peer, located: Located, target: Target): void {
  const { vm, trustedUids } = target
  if (trustedUids.includes(peer.uid) && (peer.uid === 0 || peer.uid === located.ownerUid)) return
  throw new CheckpointError(
    'ERR_UNTRUSTED_PEER',
    `The process behind '${located.socketPath}' runs as uid ${String(peer.uid)}, but the socket belongs to uid ` +
      `${String(located.ownerUid)} (trusted: ${trustedUids.join(', ')}). Nothing was sent to bhyve. If this process is ` +
      `the bhyve of VM '${vm}', run chown ${String(peer.uid)} '${located.socketPath}' and add uid ${String(peer.uid)} ` +
      "with the option 'trustedUids'",
    { vm, path: located.socketPath },
  )
}

/** A stopped bhyve does not serve its socket. A request would wait forever. */
export function assertNotPaused(peer: Peer, target: Target): void {
  if (knownStateOf(peer) !== 'paused') return
  throw new CheckpointError('ERR_VM_PAUSED', `VM '${target.vm}' is paused. Resume it first`, {
    vm: target.vm,
    vmState: 'paused',
  })
}

/** A second request relies on the result of the first, so it must go to the same process. */
export function assertSame(peer: Peer, expected: Peer, { vm }: Target): void {
  if (peer.pid === expected.pid && peer.startedAt === expected.startedAt) return
  const message =
    `Another process has taken over the socket of VM '${vm}' since the first request of this call. Nothing was sent to it. ` +
    'Check whether the VM was restarted, and try again'
  throw new CheckpointError('ERR_VM_NOT_RUNNING', message, { vm, vmState: 'unknown' })
}

/** Returns the current state of a process that we were connected to. */
export function vmStateOf(peer: Peer): VmState {
  return peer.pid === -1 ? 'unknown' : stateFrom(loadNative().processStatus(peer.pid), peer)
}

/** Like `vmStateOf`, but throws if no descriptor was left to read the state. Use it for decisions. */
export function knownStateOf(peer: Peer): VmState {
  if (peer.pid === -1) return 'unknown'
  const status = loadNative().processStatus(peer.pid)
  if (isExhausted(status))
    throw systemError(status as Failure, `Reading the status of process ${String(peer.pid)}`)
  return stateFrom(status, peer)
}

function stateFrom(status: ProcessStatus | Failure, peer: Peer): VmState {
  // A failed read does not show that the process ended. Nor does ESRCH if the process was never visible: a jail hides
  // processes.
  if (isFailure(status)) return status.errno === ESRCH && peer.startedAt !== undefined ? 'off' : 'unknown'
  if (status.state === 'zombie') return 'off'
  if (peer.startedAt !== undefined && status.startedAt !== peer.startedAt) return 'off'
  return status.state === 'stopped' ? 'paused' : 'running'
}
