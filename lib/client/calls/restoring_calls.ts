/** planRestore and restore. */
import { Cancellation } from '../../base/cancellation.js'
import { descriptorsOf } from '../descriptor_budget.js'
import { restoreSettings } from '../../operations/settings.js'
import type { RestoreContext } from '../../operations/restore/context.js'
import { planRestore } from '../../operations/restore/plan.js'
import { restore, type Restored } from '../../operations/restore/restore.js'
import type { RestoreOptions, RestorePlan } from '../../base/restore_types.js'
import { checkedFor, type Session } from '../session.js'

/** For messages: the state after a cancel, before and after bhyve was started. */
const outcome = {
  beforeStart: 'nothing was started',
  afterStart:
    'bhyve was started and continues to run (client.idle() waits until bhyve serves its socket or has exited)',
} as const

export class RestoringCalls {
  readonly #session: Session

  constructor(session: Session) {
    this.#session = session
  }

  async planRestore(vm: string, name: string, options: RestoreOptions): Promise<RestorePlan> {
    return this.#restoring(
      'Planning to restore',
      vm,
      name,
      options,
      async (context, settings, cancellation) => {
        const plan = () => planRestore(context, settings)
        const count = settings.verify ? descriptorsOf.verify : 0
        return (await this.#session.environment.descriptors().during(count, cancellation, plan)).plan
      },
    )
  }

  async restore(vm: string, name: string, options: RestoreOptions): Promise<Restored> {
    return this.#restoring('Restoring', vm, name, options, (context, settings, cancellation) => {
      this.#session.assertCan('restore', `Restoring checkpoint '${name}' of VM '${vm}'`, vm, name)
      const count = descriptorsOf.restore + (settings.verify ? descriptorsOf.verify : 0)
      const begin = () => restore(context, settings, cancellation)
      return this.#session.tracked(this.#session.environment.descriptors().during(count, cancellation, begin))
    })
  }

  async #restoring<T>(
    verb: string,
    vm: string,
    name: string,
    options: RestoreOptions,
    work: (
      context: RestoreContext,
      settings: ReturnType<typeof restoreSettings>,
      cancellation: Cancellation,
    ) => Promise<T>,
  ): Promise<T> {
    const settings = checkedFor(vm, () => restoreSettings(vm, name, options))
    const { signal, timeout } = settings
    const doing = `${verb} checkpoint '${name}' of VM '${vm}'`
    const cancellation = new Cancellation({ signal, timeout, doing, vm, once: true, ...outcome })
    cancellation.throwIfCancelled()
    const { peers, host, system, defaultRunDirectory } = this.#session.environment
    const target = { ...this.#session.settings.target, vm: settings.as ?? vm }
    const context = {
      store: this.#session.store,
      vmJobs: this.#session.vmJobs,
      disks: this.#session.disks,
      target,
      peers,
      host,
      system,
      cancellation,
      defaultRunDirectory,
    }
    const task = work(context, settings, cancellation).finally(() => cancellation[Symbol.dispose]())
    return this.#session.explained(doing, () => ({ vm, checkpoint: name }), cancellation.race(task))
  }
}
