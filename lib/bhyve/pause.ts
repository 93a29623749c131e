/** Stops and continues the process of a VM by SIGSTOP and SIGCONT, as CBSD's bpause, and waits for the effect. */
import os from 'node:os'
import { CheckpointError, isExhausted, systemError } from '../base/errors.js'
import { isFailure, loadNative } from '../base/native.js'
import type { Peer } from './peer.js'
import type { Target } from './locate.js'

const { SIGSTOP, SIGCONT } = os.constants.signals
const { ESRCH } = os.constants.errno
/** A signal takes effect at once, unless the process is inside the kernel. */
const timeoutMs = 5_000
const pollIntervalMs = 5

/** Resolves when the process is stopped (if `paused`) or running. Idempotent. */
export async function setPaused(peer: Peer, paused: boolean, target: Target): Promise<void> {
  const wanted = paused ? 'stopped' : 'running'
  const deadline = performance.now() + timeoutMs
  let isSent = false
  for (;;) {
    const state = stateOf(peer, target)
    if (state === wanted) return
    if (!isSent) send(peer, paused ? SIGSTOP : SIGCONT, target)
    isSent = true
    if (performance.now() > deadline) throw withoutEffect(peer, paused, target)
    await new Promise((resolve) => setTimeout(resolve, pollIntervalMs))
  }
}

/** Returns the process that currently has this pid, which the caller passed. */
export function peerWithPid(pid: number, target: Target): Peer {
  const status = loadNative().processStatus(pid)
  if (isFailure(status)) {
    if (isExhausted(status)) throw systemError(status, `Reading the status of process ${String(pid)}`)
    throw gone(pid, target)
  }
  return { uid: -1, pid, startedAt: status.startedAt }
}

function stateOf({ pid, startedAt }: Peer, target: Target): 'running' | 'stopped' {
  const status = loadNative().processStatus(pid)
  if (isFailure(status) && status.errno !== ESRCH)
    throw systemError(status, `Reading the status of process ${String(pid)}`)
  if (isFailure(status) || status.state === 'zombie' || status.startedAt !== startedAt)
    throw gone(pid, target)
  return status.state
}

function send({ pid, startedAt }: Peer, signal: number, target: Target): void {
  // Without the start time the pid could belong to another process, so no signal is sent.
  if (startedAt === undefined) throw gone(pid, target)
  const result = loadNative().signalProcess(pid, startedAt, signal)
  if (!isFailure(result)) return
  if (result.errno === ESRCH) throw gone(pid, target)
  throw systemError(result, `Signaling process ${String(pid)} of VM '${target.vm}'`)
}

function gone(pid: number, { vm }: Target): CheckpointError {
  const message = `VM '${vm}' is not running: its process ${String(pid)} has ended`
  return new CheckpointError('ERR_VM_NOT_RUNNING', message, { vm, vmState: 'off' })
}

function withoutEffect({ pid }: Peer, paused: boolean, { vm }: Target): CheckpointError {
  const change = paused ? 'stop' : 'continue'
  const message =
    `Process ${String(pid)} of VM '${vm}' did not ${change} within ${String(timeoutMs)} ms. ` +
    'The signal was sent and can still take effect. Check the state of the VM before you try again'
  return new CheckpointError('ERR_TIMEOUT', message, { vm, vmState: 'unknown' })
}
