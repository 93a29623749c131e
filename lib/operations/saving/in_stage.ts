/** Creates the stage of a create or suspend, and discards it if the call fails. */
import { type Located, locateSocket } from '../../bhyve/locate.js'
import { CheckpointError } from '../../base/errors.js'
import { assertRestorablePath, memorySuffix } from '../../base/names.js'
import type { Checkpoint } from '../../base/types.js'
import { hostFacts } from '../../checkpoint/host.js'
import type { Stage } from '../../store/stage.js'
import type { SaveSettings } from '../settings.js'
import type { SavingCall, SavingContext } from './call.js'
import { chooseStage } from './memory_stage.js'
import { givenArguments } from './recorded_arguments.js'
import { assertPathsFit } from './vm_request.js'

/**
 * Runs `work` with a new stage and the sockets that may belong to the VM. If `work` fails, the stage is discarded. A
 * stage that may hold the VM's only state is kept; the next call recovers it once bhyve has exited.
 */
export async function inStage(
  context: SavingContext,
  settings: SaveSettings,
  call: SavingCall,
  work: (stage: Stage, sockets: readonly Located[]) => Promise<Checkpoint>,
): Promise<Checkpoint> {
  const { cancellation, progress } = call
  const { vm, name } = settings
  const { store } = context
  call.recorded = await givenArguments(context, settings)
  const path = `${store.directoryOf(vm)}/${name}${memorySuffix}`
  assertRestorablePath(path, vm, name)
  // First: a caller that repeats a suspend finds what it did, although the VM is off and its socket may be gone.
  if (settings.publication.ifExists === 'fail') await store.jobs.assertNameFree(store.directoryOf(vm), name)
  const sockets = await locate(context)
  const [first] = sockets
  if (first === undefined)
    throw new CheckpointError('ERR_VM_NOT_RUNNING', `VM '${vm}' is not running: it has no checkpoint socket`)
  assertPathsFit(context, sockets, path, settings)
  cancellation.throwIfCancelled()
  const stage = await store.stage(vm, stageRequest(settings, first.ownerUid))
  try {
    progress.expect(stage.memoryBytes)
    await stage.reserveSpace(vm)
    call.stageUsed = await chooseStage(context, settings, stage, sockets)
    return await work(stage, sockets)
  } catch (error) {
    await discardQuietly(stage)
    throw error
  } finally {
    stage.close()
  }
}

/**
 * Runs in the caller's thread: to wake another one takes longer than to read the status of a few files, and `connect()`
 * resolves the same path in this thread anyway. Node's permission model can refuse the run directory to this thread, but not to
 * those of the pool.
 */
function locate({ target, vmJobs }: SavingContext): Located[] | Promise<Located[]> {
  return 'permission' in process ? vmJobs.locateSocket(target) : locateSocket(target)
}

function stageRequest(
  settings: SaveSettings,
  writerUid: number,
): Parameters<SavingContext['store']['stage']>[1] {
  const { vm, name, poweroff, memoryBytes, publication, labels } = settings
  const { ifExists } = publication
  const intent = { vm, name, ifExists, poweroff, labels, host: hostFacts() }
  return { name, ifExists, memoryBytes, writerUid, intent }
}

/** Ignores errors, because the original error matters more. The next call removes what is left. */
async function discardQuietly({ fate }: Stage): Promise<void> {
  if (fate.kind === 'discardable') await fate.discard().catch(() => undefined)
}
