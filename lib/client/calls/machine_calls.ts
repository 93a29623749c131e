/** Calls about VM processes: pause, resume and listVirtualMachines. */
import { assertBoolean, assertCallOptions, assertPid } from '../../base/assertions.js'
import type { ListVirtualMachinesOptions, PauseOptions } from '../../base/call_types.js'
import { peerWithPid, setPaused } from '../../bhyve/pause.js'
import { assertTrusted, type Peer } from '../../bhyve/peer.js'
import { findPeer } from '../../bhyve/probe.js'
import { describeVm } from '../../bhyve/virtual_machines.js'
import { CheckpointError } from '../../base/errors.js'
import { assertVmName } from '../../base/names.js'
import type { VirtualMachine } from '../../base/types.js'
import type { Target } from '../../bhyve/locate.js'
import { type Session } from '../session.js'

/** For messages: the state after a cancel. */
const outcomes = {
  signaling: {
    beforeStart: 'no signal was sent',
    afterStart: 'the signal was sent and can still take effect (client.idle() waits for that)',
  },
  listing: { beforeStart: 'nothing was changed', afterStart: 'nothing was changed' },
} as const

export class MachineCalls {
  readonly #session: Session

  constructor(session: Session) {
    this.#session = session
  }

  async pause(vm: string, options: PauseOptions = {}): Promise<void> {
    assertVmName(vm)
    this.#assertNoRequest(vm)
    return this.#setPaused(vm, true, options)
  }

  #assertNoRequest(vm: string): void {
    if (!this.#session.requests.has(vm)) return
    const message =
      `Pausing VM '${vm}': a checkpoint of this VM is in progress. It could not complete if the VM were paused now. ` +
      'Nothing was changed. Wait until the checkpoint has completed'
    throw new CheckpointError('ERR_CHECKPOINT_BUSY', message, { vm, holderPid: process.pid })
  }

  async resume(vm: string, options: PauseOptions = {}): Promise<void> {
    assertVmName(vm)
    return this.#setPaused(vm, false, options)
  }

  async #setPaused(vm: string, paused: boolean, options: PauseOptions): Promise<void> {
    assertCallOptions(options, ['pid'])
    const { pid } = options
    if (pid !== undefined) assertPid(pid)
    const target = { ...this.#session.settings.target, vm }
    const operation = paused ? 'pause' : 'resume'
    const doing = `${paused ? 'Pausing' : 'Resuming'} VM '${vm}'`
    const call = { operation, doing, vm, options, outcome: outcomes.signaling } as const
    return this.#session.call(call, async (cancellation) => {
      const peer = pid === undefined ? await this.#peerOf(target) : peerWithPid(pid, target)
      // Checked again, because a request may have begun meanwhile. A later request is rejected with ERR_VM_PAUSED.
      if (paused && pid === undefined) this.#assertNoRequest(vm)
      cancellation.begin()
      return setPaused(peer, paused, target)
    })
  }

  async #peerOf(target: Target): Promise<Peer> {
    const sockets = await this.#session.vmJobs.locateSocket(target)
    const { peer, located } = findPeer(sockets, target, this.#session.environment.peers)
    assertTrusted(peer, located, target)
    return peer
  }

  async listVirtualMachines(options: ListVirtualMachinesOptions = {}): Promise<VirtualMachine[]> {
    assertCallOptions(options, ['connect'])
    const { connect = true } = options
    assertBoolean(connect, 'connect')
    const { target } = this.#session.settings
    const doing = 'Listing virtual machines'
    const call = { operation: 'listVirtualMachines', doing, options, outcome: outcomes.listing } as const
    return this.#session.call(call, async (cancellation) => {
      const found = await this.#session.vmJobs.findSockets(target)
      cancellation.throwIfCancelled()
      return found.map((one) => describeVm(one, target, this.#session.environment.peers, connect))
    })
  }
}
