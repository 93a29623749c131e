/** The bhyve process behind a socket: may it be given our folder, does it live, does it stand still? */
import os from 'node:os'
import { CheckpointError, isExhausted, systemError } from '../base/errors.js'
import { type Failure, isFailure, loadNative, type ProcessStatus } from '../base/native.js'
import type { VmState } from '../base/types.js'
import type { Located, Target } from './locate.js'

const { ESRCH } = os.constants.errno

export interface Peer {
  uid: number
  /** -1 where the system does not tell. */
  pid: number
  /** Tells two processes with the same pid apart; undefined where it cannot be known. */
  startedAt: string | undefined
}

/** The process at the other end of a connection. */
export function peerOf(descriptor: number): Peer {
  const native = loadNative()
  const peer = native.peerOf(descriptor)
  if (isFailure(peer)) throw systemError(peer, "asking for the peer's credentials")
  if (peer.pid === -1) return { ...peer, startedAt: undefined }
  const status = native.processStatus(peer.pid)
  if (!isFailure(status)) return { ...peer, startedAt: status.startedAt }
  // Without a start time it would be taken for another process, or for one that we may not see.
  if (isExhausted(status)) throw systemError(status, `looking at process ${String(peer.pid)}`)
  return { ...peer, startedAt: undefined }
}

/**
 * The folder was made for the socket's owner. A peer that is somebody else must not get it, unless it is root,
 * who could take it anyway.
 */
export function assertTrusted(peer: Peer, located: Located, target: Target): void {
  const { vm, trustedUids } = target
  if (trustedUids.includes(peer.uid) && (peer.uid === 0 || peer.uid === located.ownerUid)) return
  throw new CheckpointError(
    'ERR_UNTRUSTED_PEER',
    `the process behind '${located.socketPath}' runs as uid ${String(peer.uid)}; trusted: ${trustedUids.join(', ')}; ` +
      `the socket belongs to uid ${String(located.ownerUid)}. It was told nothing`,
    { vm, path: located.socketPath },
  )
}

/** A stopped bhyve cannot serve its socket: the request would wait for ever. */
export function assertNotPaused(peer: Peer, target: Target): void {
  if (knownStateOf(peer) !== 'paused') return
  throw new CheckpointError('ERR_VM_PAUSED', `VM '${target.vm}' is paused: resume it first`, {
    vm: target.vm,
    vmState: 'paused',
  })
}

/** A question that builds on the answer of another process would be a wrong one. */
export function assertSame(peer: Peer, expected: Peer, { vm }: Target): void {
  if (peer.pid === expected.pid && peer.startedAt === expected.startedAt) return
  const message = `the bhyve of VM '${vm}' was replaced by another one while it was being asked`
  throw new CheckpointError('ERR_VM_NOT_RUNNING', message, { vm, vmState: 'unknown' })
}

/** What the process that we were connected to does now. */
export function vmStateOf(peer: Peer): VmState {
  return peer.pid === -1 ? 'unknown' : stateFrom(loadNative().processStatus(peer.pid), peer)
}

/** The same for a decision: rejects where no descriptor was left for the look. */
export function knownStateOf(peer: Peer): VmState {
  if (peer.pid === -1) return 'unknown'
  const status = loadNative().processStatus(peer.pid)
  if (isExhausted(status)) throw systemError(status as Failure, `looking at process ${String(peer.pid)}`)
  return stateFrom(status, peer)
}

function stateFrom(status: ProcessStatus | Failure, peer: Peer): VmState {
  // A look that failed is no news of a death, nor is one that never showed anything: a jail hides processes.
  if (isFailure(status)) return status.errno === ESRCH && peer.startedAt !== undefined ? 'off' : 'unknown'
  if (status.state === 'zombie') return 'off'
  if (peer.startedAt !== undefined && status.startedAt !== peer.startedAt) return 'off'
  return status.state === 'stopped' ? 'paused' : 'running'
}
