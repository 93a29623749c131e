/**
 * Starts another VM from a checkpoint, on copies of its disks. The checkpoint gets no restore record, and the saved VM
 * may run. Only the name of the new VM is locked, so that any number of VMs can be started from one checkpoint.
 */
import type { Cancellation } from '../../base/cancellation.js'
import { loadNative } from '../../base/native.js'
import { type Copies, makeClones, withoutClones } from './clones.js'
import type { RestoreContext } from './context.js'
import { assertUnblocked, changed } from './failures.js'
import { argumentsFor, faultBlockers, type ForkSettings } from './fork_plan.js'
import { launch, type Launch } from './launch.js'
import { planRestore, type Planned } from './plan.js'
import type { Restored } from './restored.js'
import { forgetRollback } from './rollback.js'
import { targetsOf } from './targets.js'

export async function fork(
  context: RestoreContext,
  settings: ForkSettings,
  cancellation: Cancellation,
): Promise<Restored> {
  const { jobs } = context.store
  const directory = context.store.directoryOf(settings.as)
  const { made, descriptors } = await jobs.beginFork(directory)
  try {
    return await forkPlanned(context, settings, cancellation)
  } finally {
    // Ignore errors: recovery removes what is left.
    await jobs.endFork(directory, descriptors.restoreLock, made).catch(() => undefined)
    loadNative().close(descriptors.restoreLock)
  }
}

async function forkPlanned(
  context: RestoreContext,
  settings: ForkSettings,
  cancellation: Cancellation,
): Promise<Restored> {
  cancellation.throwIfCancelled()
  const planned = await planRestore(context, settings, true)
  assertUnblocked(planned.plan.blockers, settings)
  cancellation.throwIfCancelled()
  const { store } = context
  const { identity } = planned.checkpoint
  const held = await store.jobs.holdUnrecorded(store.directoryOf(settings.vm), settings.name, identity)
  if (held === undefined) throw changed(settings)
  try {
    const restored = await forkHeld(context, settings, planned, cancellation)
    // The new VM runs on copies, and not on what was put back before.
    await forgetRollback(context, planned.rollback !== undefined)
    return restored
  } finally {
    loadNative().close(held.descriptors.staging)
  }
}

async function forkHeld(
  context: RestoreContext,
  settings: ForkSettings,
  planned: Planned,
  cancellation: Cancellation,
): Promise<Restored> {
  const { store, target } = context
  const isCloned = settings.disks === 'clone'
  const log = await store.jobs.openLog(store.directoryOf(target.vm), settings.logFile)
  try {
    const copies = isCloned ? await makeClones(planned.snapshots, settings.as, cancellation) : []
    const launching: ForkLaunch = {
      ...{ context, settings, args: [], targets: [], log, mayHaveRun: false },
      disks: { clonedDisks: isCloned ? copies.map(([, copy]) => copy) : undefined },
      leftovers: 'the copies of the disks were not removed',
    }
    return await forkCloned(launching, planned, copies, cancellation).catch(async (error: unknown) => {
      throw isCloned && !launching.mayHaveRun
        ? await withoutClones(error, planned.snapshots, settings.as)
        : error
    })
  } finally {
    loadNative().close(log.descriptors.log)
  }
}

type ForkLaunch = Launch & { settings: ForkSettings }

/** The plan may have had to guess the paths of the copies, so the arguments are rewritten and verified again. */
async function forkCloned(
  launching: ForkLaunch,
  { report, checkpoint }: Planned,
  copies: Copies,
  cancellation: Cancellation,
): Promise<Restored> {
  const { context, settings } = launching
  const forked = await argumentsFor(context, settings, report, copies)
  assertUnblocked(faultBlockers(forked), settings)
  launching.args = forked.args.toSpliced(forked.insertAt, 0, '-r', checkpoint.listed.path)
  launching.targets = targetsOf(context, forked)
  return launch(launching, cancellation)
}
