/** diagnose and planCheckpoint. */
import { assertCallOptions, assertOptions, invalid } from '../../base/assertions.js'
import type { CheckpointPlan, Finding, PlanCheckpointOptions } from '../../base/finding_types.js'
import type { CallOptions } from '../../base/call_options.js'
import { membersOf } from '../../base/union_members.js'
import { diagnose } from '../../operations/diagnose.js'
import type { PlanSettings } from '../../operations/plan_checkpoint/context.js'
import { planCheckpoint } from '../../operations/plan_checkpoint/plan.js'
import { createSettings } from '../../operations/settings.js'
import { limitOf } from '../runtime.js'
import { checkedFor, type Session } from '../session.js'
import { assertProvided } from '../provided_disks.js'

const planOptions: readonly string[] = membersOf<keyof PlanCheckpointOptions>({
  name: true,
  poweroff: true,
  disks: true,
  args: true,
  signal: true,
  timeout: true,
})

/** For messages: the state after a cancel. */
const outcome = {
  beforeStart: 'nothing was read',
  afterStart: 'the reads continue (client.idle() waits for that)',
}

export class DiagnosisCalls {
  readonly #session: Session

  constructor(session: Session) {
    this.#session = session
  }

  async diagnose(options: CallOptions = {}): Promise<readonly Finding[]> {
    assertCallOptions(options)
    const { store, vmJobs, settings, environment } = this.#session
    const { system, peers, facts, runtime } = environment
    const context = {
      ...{ store, vmJobs, system, peers, facts },
      target: settings.target,
      memoryStage: settings.memoryStage,
      runtimeFault: limitOf(runtime),
    }
    const call = { operation: 'diagnose', doing: 'Diagnosing the host', options, outcome } as const
    return this.#begun(call, () => diagnose(context))
  }

  async planCheckpoint(vm: string, options: PlanCheckpointOptions = {}): Promise<CheckpointPlan> {
    const planned = checkedFor(vm, () => this.#settings(vm, options))
    const { store, vmJobs, disks, environment, settings, supervisors } = this.#session
    const { system, peers, facts, exitTimeoutMs } = environment
    const context = {
      ...{ store, vmJobs, disks, supervisors, system, peers, facts, exitTimeoutMs },
      target: { ...settings.target, vm },
    }
    const doing = `Planning checkpoint '${planned.name}' of VM '${vm}'`
    const subject = { operation: 'planCheckpoint', doing, vm, checkpoint: planned.name } as const
    return this.#begun({ ...subject, options, outcome }, () => planCheckpoint(context, planned))
  }

  /** The reads cannot be stopped, so the call has begun at once. */
  #begun<T>(call: Parameters<Session['call']>[0], work: () => Promise<T>): Promise<T> {
    return this.#session.call(call, (cancellation) => {
      cancellation.begin()
      return work()
    })
  }

  #settings(vm: string, options: PlanCheckpointOptions): PlanSettings {
    assertOptions(options, 'PlanCheckpointOptions', planOptions)
    const { args, poweroff = false, name = poweroff ? 'suspend' : 'checkpoint', disks } = options
    const { signal, timeout } = options
    const settings = createSettings(
      vm,
      { name, poweroff, disks, signal, timeout },
      this.#session.settings.target.dialect,
    )
    if (args !== undefined && !isWords(args))
      throw invalid("The option 'args' must be an array of strings without NUL", args)
    assertProvided(this.#session.disks, settings.disks)
    return { ...settings, args }
  }
}

function isWords(value: unknown): boolean {
  return Array.isArray(value) && value.every((word) => typeof word === 'string' && !word.includes('\0'))
}
