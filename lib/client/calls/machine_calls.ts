/** Calls about VM processes: pause, resume and listVirtualMachines. */
import { assertBoolean, assertOptions, assertPid } from '../../base/assertions.js'
import { peerWithPid, setPaused } from '../../bhyve/pause.js'
import { assertTrusted } from '../../bhyve/peer.js'
import { findPeer } from '../../bhyve/probe.js'
import { describeVm } from '../../bhyve/virtual_machines.js'
import { CheckpointError } from '../../base/errors.js'
import { assertVmName } from '../../base/names.js'
import type { VirtualMachine } from '../../base/types.js'
import { type Session } from '../session.js'

export class MachineCalls {
  readonly #session: Session

  constructor(session: Session) {
    this.#session = session
  }

  async pause(vm: string, options: { pid?: number | undefined } = {}): Promise<void> {
    assertVmName(vm)
    this.#assertNoRequest(vm)
    return this.#session.explained(`Pausing VM '${vm}'`, () => ({ vm }), this.#setPaused(vm, true, options))
  }

  #assertNoRequest(vm: string): void {
    if (!this.#session.requests.has(vm)) return
    const message =
      `Pausing VM '${vm}': a checkpoint of this VM is in progress. It could not complete if the VM were paused now. ` +
      'Nothing was changed. Wait until the checkpoint has completed'
    throw new CheckpointError('ERR_CHECKPOINT_BUSY', message, { vm, holderPid: process.pid })
  }

  async resume(vm: string, options: { pid?: number | undefined } = {}): Promise<void> {
    assertVmName(vm)
    return this.#session.explained(`Resuming VM '${vm}'`, () => ({ vm }), this.#setPaused(vm, false, options))
  }

  async #setPaused(vm: string, paused: boolean, options: { pid?: number | undefined }): Promise<void> {
    assertOptions(options, 'the options', ['pid'])
    const target = { ...this.#session.settings.target, vm }
    if (options.pid !== undefined) {
      assertPid(options.pid)
      return setPaused(peerWithPid(options.pid, target), paused, target)
    }
    const sockets = await this.#session.vmJobs.locateSocket(target)
    const { peer, located } = findPeer(sockets, target, this.#session.environment.peers)
    assertTrusted(peer, located, target)
    // Checked again, because a request may have begun meanwhile. A later request is rejected with ERR_VM_PAUSED.
    if (paused) this.#assertNoRequest(vm)
    return setPaused(peer, paused, target)
  }

  async listVirtualMachines(options: { connect?: boolean | undefined } = {}): Promise<VirtualMachine[]> {
    assertOptions(options, 'the options', ['connect'])
    const { connect = true } = options
    assertBoolean(connect, 'connect')
    const { target } = this.#session.settings
    const found = this.#session.explained(
      'Listing virtual machines',
      () => ({}),
      this.#session.vmJobs.findSockets(target),
    )
    return (await found).map((one) => describeVm(one, target, this.#session.environment.peers, connect))
  }
}
