/** Plans a checkpoint: collects what `createCheckpoint` or `suspend` would run into. Changes nothing. */
import { randomUUID } from 'node:crypto'
import { reasonOf } from '../../base/errors.js'
import type { CheckpointPlan } from '../../base/finding_types.js'
import type { DiskSelection } from '../../base/disk_types.js'
import {
  blocked,
  type Findings,
  joined,
  nothing,
  type PlanContext,
  type PlanSettings,
  warned,
} from './context.js'
import { inspectDevices } from './devices.js'
import { inspectMachine } from './machine.js'
import { spaceFindings, storeFindings } from './stored.js'

export async function planCheckpoint(context: PlanContext, settings: PlanSettings): Promise<CheckpointPlan> {
  const { vm, name } = settings
  const directory = context.store.directoryOf(vm)
  const [machine, [report], fault] = await Promise.all([
    inspectMachine(context, settings),
    context.vmJobs.inspectStores([{ vm, directory, only: name }]),
    context.vmJobs.faultOfName(directory, name),
  ])
  const devices = await inspectDevices(context, settings, machine)
  const memoryBytes = devices.memoryBytes ?? report?.memoryBytes
  const { blockers, warnings } = joined([
    machine,
    ...(report === undefined
      ? []
      : [
          storeFindings(report, settings, fault),
          await spaceFindings(context, settings, report, memoryBytes),
        ]),
    devices,
    await diskFindings(context, settings, report?.directory.existing ?? directory),
  ])
  const { unsupported: unsupportedDevices } = devices
  return { blockers, warnings, unsupportedDevices, ...(memoryBytes === undefined ? {} : { memoryBytes }) }
}

/** `directory`: the checkpoint directory or, if it does not exist yet, the nearest one above it. */
async function diskFindings(
  context: PlanContext,
  settings: PlanSettings,
  directory: string,
): Promise<Findings> {
  const found = settings.disks.map((selection) => ofSelection(context, settings, selection, directory))
  return joined(await Promise.all(found))
}

async function ofSelection(
  { disks }: PlanContext,
  { vm }: PlanSettings,
  selection: DiskSelection,
  directory: string,
): Promise<Findings> {
  const { kind } = selection
  const provider = await disks.of(kind)
  if (provider?.inspect === undefined)
    return warned(
      'disks-not-checked',
      `disks of the kind '${kind}' can be checked only when they are captured`,
    )
  const { signal } = new AbortController()
  try {
    const unchecked = await provider.inspect({
      vm,
      id: randomUUID(),
      directory,
      selection,
      signal,
      inherit: -1,
    })
    return joined([nothing, ...unchecked.map((what) => warned('disks-not-checked', what))])
  } catch (error) {
    return blocked('disks-not-captured', reasonOf(error))
  }
}
