/** Plans the arrival of a VM: what would prevent this host from running it. Changes nothing. */
import path from 'node:path'
import { isVmName } from '../../base/names.js'
import type { MoveBlocker, MoveWarning } from '../../base/move_types.js'
import type { ArgumentsReport } from '../../bhyve_arguments/report.js'
import { doubtOf } from '../../checkpoint/moving.js'
import type { StoreReport } from '../../diagnosis/store_report.js'
import type { MovingCopy } from '../../store/catalog/move_records.js'
import type { StoreIdentity } from '../../store/catalog/store_identity.js'
import { marginBytes } from '../../store/staging/space.js'
import type { RestoreContext } from '../restore/context.js'
import { runningBlockers, targetsOf } from '../restore/targets.js'
import { readerOf } from '../restore/reader.js'
import { defaultBhyve } from '../settings.js'
import type { Found, LeftCopy, PlanMessage } from './messages.js'

export interface ArrivalPlan {
  blockers: Found<MoveBlocker>
  warnings: Found<MoveWarning>
  /** Copies that the same store has left here. */
  left: readonly LeftCopy[]
}

type Blockers = { code: MoveBlocker; message: string }[]

export async function planArrival(
  context: RestoreContext,
  plan: PlanMessage,
  bhyve: string,
): Promise<ArrivalPlan> {
  const { store, vmJobs } = context
  const directory = store.directoryOf(plan.vm)
  const { args, directory: workingDirectory } = plan.facts
  const report = await vmJobs.readArguments(args, plan.vm, bhyve, { directory: workingDirectory })
  const [stored] = await vmJobs.inspectStores([{ vm: plan.vm, directory }])
  const copies = await store.jobs.movingCopies(directory)
  const own = await store.jobs.storeIdentity(directory)
  const left = copies.filter((copy) => isLeft(copy, plan))
  const blockers = [
    ...hostBlockers(context, plan),
    ...argumentBlockers(report, plan, bhyve),
    ...(await runningBlockers(context, targetsOf(context, report))),
    ...directoryBlockers(plan, directory, own),
    ...(stored === undefined ? [] : storeBlockers(stored, copies, plan)),
    ...(await datasetBlockers(plan, left)),
  ]
  return {
    blockers,
    warnings: warningsFor(context, plan, stored, left),
    left: left.map(({ move: { id, state } }) => ({ id, state: state as LeftCopy['state'] })),
  }
}

function hostBlockers({ host, target, system }: RestoreContext, { facts, anyCpu }: PlanMessage): Blockers {
  const { machine, cpuModel } = host()
  const reader = readerOf(target.dialect, system)
  const found: Blockers = []
  if (facts.machine !== machine)
    found.push({
      code: 'architecture-differs',
      message: `the VM runs on architecture '${facts.machine}', but this host has '${machine}'`,
    })
  else if (facts.cpuModel !== cpuModel && !anyCpu)
    found.push({
      code: 'cpu-differs',
      message:
        `the VM runs on CPU model '${facts.cpuModel}', but this host has '${cpuModel}': the guest may crash if it uses ` +
        "features that this CPU lacks (to move it anyway, pass the option 'anyCpu')",
    })
  if (facts.generation !== undefined && reader !== undefined && facts.generation !== reader.generation)
    found.push({
      code: 'generation-differs',
      message: `the VM is saved in the format of FreeBSD ${facts.generation}, but the bhyve of this host reads that of ${reader.generation} (${reader.because})`,
    })
  return found
}

/** The datasets of copies that are left are removed before the disks arrive. */
async function datasetBlockers({ disks = [] }: PlanMessage, left: readonly MovingCopy[]): Promise<Blockers> {
  if (disks.length === 0) return []
  const { planReceiving } = await import('../../disks/zfs/receiving.js')
  const arriving = left.flatMap(({ move }) => (move.state === 'arriving' ? [move.id] : []))
  return planReceiving(disks, new Set(arriving))
}

/** A disk that is sent exists only after it has arrived. The restore is planned again then. */
function isSent(disk: string, { disks = [], facts }: PlanMessage): boolean {
  const where = path.resolve(facts.directory, disk)
  return disks.some(({ paths }) => paths.includes(where))
}

function argumentBlockers(report: ArgumentsReport, plan: PlanMessage, bhyve: string): Blockers {
  const { vm } = plan
  const { fault, name, directoryFault, executableFault, disks } = report
  const invalid = (message: string): Blockers[number] => ({ code: 'arguments-invalid', message })
  if (fault !== undefined) return [invalid(fault)]
  const isOther = name !== undefined && (!isVmName(name) || name !== vm)
  const mayLackBhyve = bhyve === defaultBhyve && process.platform !== 'freebsd'
  return [
    ...(isOther ? [invalid(`the arguments are of VM ${JSON.stringify(name)}`)] : []),
    ...(directoryFault === undefined ? [] : [invalid(`${directoryFault}: create it on this host`)]),
    ...(executableFault === undefined || mayLackBhyve ? [] : [invalid(executableFault)]),
    ...disks
      .filter((disk) => disk.isInaccessible === true && !isSent(disk.path, plan))
      .map(({ path, device, why = '' }) => ({
        code: 'disks-missing' as const,
        message: `this host has no disk '${path}' (${device}): ${why}`,
      })),
  ]
}

/** The sender holds the restore lock, so the lock also shows that both hosts share the directory. */
function directoryBlockers(
  { vm, origin }: PlanMessage,
  directory: string,
  { id, isRestoring }: StoreIdentity,
): Blockers {
  const isShared = id !== undefined && origin.endsWith(`:${id}`)
  if (!isShared && !isRestoring) return []
  const message =
    `'${directory}' is the checkpoint directory of the sender, or a restore of VM '${vm}' is in progress on this host: use ` +
    'another checkpoint directory, or try again later'
  return [{ code: 'name-taken', message }]
}

function storeBlockers(
  { directory, failure, checkpoints }: StoreReport,
  copies: readonly MovingCopy[],
  plan: PlanMessage,
): Blockers {
  const { existing, freeBytes, isWritable } = directory
  const required = (plan.facts.memoryBytes ?? 0) + marginBytes
  const isReplaced = copies.some((copy) => copy.name === plan.name && isUseless(copy, plan))
  const isTaken = checkpoints.some(({ name }) => name === plan.name) && !isReplaced
  const found: Blockers = []
  if (failure !== undefined) found.push({ code: 'not-permitted', message: failure })
  else if (!isWritable)
    found.push({ code: 'not-permitted', message: `this process cannot write in '${existing}'` })
  if (freeBytes !== undefined && freeBytes < required)
    found.push({
      code: 'no-space',
      message: `the checkpoint needs ${String(required)} bytes in '${existing}', but only ${String(freeBytes)} are available`,
    })
  if (isTaken)
    found.push({
      code: 'name-taken',
      message: `checkpoint '${plan.name}' of VM '${plan.vm}' exists on this host: pass another name with the option 'name'`,
    })
  return [...found, ...doubtBlockers(copies, plan)]
}

function doubtBlockers(copies: readonly MovingCopy[], plan: PlanMessage): Blockers {
  return copies
    .filter(
      ({ move }) => move.state === 'moved-to' || (move.state === 'arriving' && move.origin !== plan.origin),
    )
    .map(({ name, move }) => ({
      code: 'move-in-doubt',
      message: `checkpoint '${name}' is part of another move that is in doubt: ${doubtOf(move)}`,
    }))
}

/** A copy that the same store has sent here in vain. That store has no record that it committed such a move. */
function isLeft({ move, restored }: MovingCopy, { origin }: PlanMessage): boolean {
  const isUnused = move.state === 'arriving' || move.state === 'not-started'
  return isUnused && move.origin === origin && restored === 'no'
}

/** Also the copy that this host has kept when it sent the VM away earlier. */
export function isUseless(copy: MovingCopy, plan: PlanMessage): boolean {
  return isLeft(copy, plan) || (copy.move.state === 'moved' && copy.restored === 'no')
}

function warningsFor(
  { host }: RestoreContext,
  plan: PlanMessage,
  stored: StoreReport | undefined,
  left: readonly MovingCopy[],
): Found<MoveWarning> {
  const { freeMemoryBytes } = host()
  const { memoryBytes = 0 } = plan.facts
  const suspended = stored?.checkpoints.filter(({ isSuspended }) => isSuspended) ?? []
  return [
    ...left.map(({ name }) => ({
      code: 'copy-left' as const,
      message: `an earlier move of this VM has left checkpoint '${name}', which this move removes`,
    })),
    ...suspended.map(({ name }) => ({
      code: 'state-suspended' as const,
      message: `the VM has the suspended state '${name}' on this host, which was not restored`,
    })),
    ...(memoryBytes > freeMemoryBytes
      ? [
          {
            code: 'not-enough-memory' as const,
            message: `the guest has ${String(memoryBytes)} bytes of memory, but this host has only ${String(freeMemoryBytes)} free`,
          },
        ]
      : []),
  ]
}
