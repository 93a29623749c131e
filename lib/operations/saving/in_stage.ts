/** Creates the stage of a create or suspend, and discards it if the call fails. */
import { type Located, locateSocket } from '../../bhyve/locate.js'
import { CheckpointError } from '../../base/errors.js'
import { assertRestorablePath, memorySuffix } from '../../base/names.js'
import type { Checkpoint } from '../../base/types.js'
import { hostFacts } from '../../checkpoint/host.js'
import type { Stage } from '../../store/stage.js'
import type { Writer } from '../../store/staging/intent.js'
import type { SaveSettings } from '../settings.js'
import type { SavingCall, SavingContext } from './call.js'
import { chooseStage } from './memory_stage.js'
import { givenArguments } from './recorded_arguments.js'
import { assertPathsFit, dialectsAt } from './vm_request.js'

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
  // Not in the pool: when this thread connects, it resolves the same path.
  const sockets = locateSocket(context.target)
  const [first] = sockets
  if (first === undefined)
    throw new CheckpointError('ERR_VM_NOT_RUNNING', `VM '${vm}' is not running: it has no checkpoint socket`)
  assertPathsFit(context, sockets, path, settings)
  cancellation.throwIfCancelled()
  const stage = await store.stage(vm, stageRequest(context, settings, first))
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

function stageRequest(
  context: SavingContext,
  settings: SaveSettings,
  located: Located,
): Parameters<SavingContext['store']['stage']>[1] {
  const { vm, name, poweroff, memoryBytes, publication, labels } = settings
  const { ifExists } = publication
  const intent = { vm, name, ifExists, poweroff, labels, host: hostFacts() }
  const writer = poweroff ? undefined : probableWriter(context, settings, located)
  return { name, ifExists, memoryBytes, writerUid: located.ownerUid, intent, writer }
}

/** The process that was behind this socket before, if any. */
function probableWriter(
  context: SavingContext,
  { request }: SaveSettings,
  located: Located,
): Writer | undefined {
  const peer = context.peers.peerAt(located)
  const [dialect] = peer === undefined ? [] : dialectsAt(context, located, request.dialect)
  return peer === undefined || dialect === undefined ? undefined : { ...peer, dialect }
}

/** Ignores errors, because the original error matters more. The next call removes what is left. */
async function discardQuietly({ fate }: Stage): Promise<void> {
  if (fate.kind === 'discardable') await fate.discard().catch(() => undefined)
}
