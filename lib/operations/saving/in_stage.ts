/** A call that saves a VM begins with a stage, and leaves none behind that nobody needs. */
import type { Located } from '../../bhyve/locate.js'
import { CheckpointError } from '../../base/errors.js'
import { assertRestorablePath, memorySuffix } from '../../base/names.js'
import type { Checkpoint } from '../../base/types.js'
import { hostFacts } from '../../checkpoint/host.js'
import type { Stage } from '../../store/stage.js'
import type { SaveSettings } from '../settings.js'
import type { SavingCall, SavingContext } from './call.js'
import { assertPathsFit } from './vm_request.js'

export interface Reservation {
  /** RAM of unknown size counts as so many bytes; undefined: room is not asked for then. */
  unknownMemoryBytes: number | undefined
}

/**
 * Runs `work` with a stage for what bhyve is going to write, and the sockets that may be the VM's. Where it fails, the stage
 * is thrown away, unless it may hold a VM: that one stays, and the next call brings it home once bhyve has ended.
 */
export async function inStage(
  context: SavingContext,
  settings: SaveSettings,
  { cancellation, progress }: SavingCall,
  { unknownMemoryBytes }: Reservation,
  work: (stage: Stage, sockets: readonly Located[]) => Promise<Checkpoint>,
): Promise<Checkpoint> {
  const { vm, name } = settings
  const { store } = context
  const path = `${store.directoryOf(vm)}/${name}${memorySuffix}`
  assertRestorablePath(path, vm, name)
  const sockets = await context.vmJobs.locateSocket(context.place)
  const [first] = sockets
  if (first === undefined) throw new CheckpointError('ERR_VM_NOT_RUNNING', `VM '${vm}' has no socket`)
  assertPathsFit(context, sockets, path, settings)
  cancellation.throwIfCancelled()
  const stage = await store.stage(vm, stageRequest(settings, first.ownerUid))
  try {
    progress.expect(stage.memoryBytes)
    await stage.reserveSpace(vm, unknownMemoryBytes)
    return await work(stage, sockets)
  } catch (error) {
    await discardQuietly(stage)
    throw error
  } finally {
    stage.close()
  }
}

function stageRequest(
  settings: SaveSettings,
  writerUid: number,
): Parameters<SavingContext['store']['stage']>[1] {
  const { vm, name, poweroff, memoryBytes, publication } = settings
  const { ifExists, durable } = publication
  const intent = { vm, name, ifExists, poweroff, host: hostFacts() }
  return { name, ifExists, durable, memoryBytes, writerUid, intent }
}

/** What fails here is picked up by the next call's recovery; the error that brought us here matters more. */
async function discardQuietly({ fate }: Stage): Promise<void> {
  if (fate.kind === 'discardable') await fate.discard().catch(() => undefined)
}
