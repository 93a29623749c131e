/** Keeps a supervisor from starting a VM from its disks while, and after, the VM is suspended. */
import os from 'node:os'
import { datastoresOf } from '../../bhyve/supervisors/datastores.js'
import type { VmBhyveMachine } from '../../bhyve/supervisors/suspending_lock.js'
import { CheckpointError, detailsOf, reasonOf } from '../../base/errors.js'
import { traceDecision } from '../../base/trace.js'
import type { SavingContext } from '../saving/call.js'
import { refusalOf } from './refusal.js'

type Context = Pick<SavingContext, 'vmJobs' | 'supervisors'>

export class Supervision {
  readonly #context: Context
  readonly #vm: string
  #locked: VmBhyveMachine | undefined

  constructor(context: Context, vm: string) {
    this.#context = context
    this.#vm = vm
  }

  /** Call this before the request is sent to the process. Rejects if the VM would be started again. */
  async begin(pid: number): Promise<void> {
    const { vmJobs, supervisors } = this.#context
    const { option, libvirtDirectory } = supervisors
    if (option === 'mine') return
    const vm = this.#vm
    const found = pid === -1 ? undefined : await vmJobs.supervisorOf({ vm, pid, libvirtDirectory })
    traceDecision(vm, 'supervisor', { found, option })
    const refusal = refusalOf(vm, found, option)
    if (refusal !== undefined)
      throw new CheckpointError('ERR_VM_SUPERVISED', `${refusal}. Nothing was sent to bhyve`, { vm })
    if (option === 'vm-bhyve') await this.#lock()
  }

  /** The file remains between the attempts of one call. */
  async #lock(): Promise<void> {
    if (this.#locked !== undefined) return
    const { vmJobs } = this.#context
    const machine = await vmBhyveMachine(this.#context, this.#vm)
    const path = await vmJobs.writeSuspendingLock(machine)
    traceDecision(this.#vm, 'vm-bhyve stops when the VM ends', { path })
    this.#locked = machine
  }

  /** Call this if the VM certainly runs on. Resolves with the error to reject with. */
  async end<T>(error: T): Promise<T | CheckpointError> {
    const machine = this.#locked
    if (machine === undefined) return error
    try {
      await this.#context.vmJobs.removeSuspendingLock(machine)
      this.#locked = undefined
      return error
    } catch (failure) {
      if (!(error instanceof CheckpointError)) return error
      const message =
        `${error.message}. The VM runs on, but vm-bhyve will not start it again when its guest reboots, because ` +
        `'suspending.lock' of VM '${this.#vm}' could not be removed: ${reasonOf(failure)}. Remove that file`
      return new CheckpointError(error.code, message, detailsOf(error))
    }
  }
}

/** Rejects with ERR_VM_SUPERVISED if vm-bhyve does not print its datastores. */
export async function vmBhyveMachine(
  { supervisors }: Pick<Context, 'supervisors'>,
  vm: string,
): Promise<VmBhyveMachine> {
  return { vm, datastores: await datastoresOf(supervisors.vmBhyveProgram), hostname: os.hostname() }
}
