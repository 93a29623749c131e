/** What the host that sends a VM knows about it: its state, its arguments and its plan. */
import { CheckpointError } from '../../base/errors.js'
import type { CheckpointPlan } from '../../base/finding_types.js'
import type { MoveBlocker, MoveWarning } from '../../base/move_types.js'
import { probe } from '../../bhyve/probe.js'
import { doubtOf } from '../../checkpoint/moving.js'
import { blocksStart } from '../../checkpoint/move_record.js'
import type { RecordedArguments } from '../../checkpoint/recorded_arguments.js'
import type { CheckpointReport } from '../../store/catalog/restore_records.js'
import type { RestoreContext } from '../restore/context.js'
import { readerOf } from '../restore/reader.js'
import { signOfLife, socketsIn } from '../restore/running.js'
import { doneRollback, findRollback } from '../restore/unfinished.js'
import { hostFacts } from '../../checkpoint/host.js'
import type { Found, MoveFacts } from './messages.js'

/** The VM before its move. */
export interface Departure {
  name: string
  /** The suspended state. Undefined: the VM runs and is still to be suspended. */
  state: CheckpointReport | undefined
  /** Undefined if they are not known: a blocker has the reason. */
  recorded: RecordedArguments | undefined
  /** The caller passed the arguments. */
  isGiven: boolean
  facts: MoveFacts
  blockers: Found<MoveBlocker>
  warnings: Found<MoveWarning>
}

export interface DepartureRequest {
  vm: string
  name: string | undefined
  args: { words: readonly string[]; directory: string } | undefined
  /** Plans the suspend of a running VM. */
  planSuspend: (name: string) => Promise<CheckpointPlan>
}

export async function inspectDeparture(
  context: RestoreContext,
  request: DepartureRequest,
): Promise<Departure> {
  const isRunning = (await signOfLife(context.vmJobs, context.target, context.peers)) !== undefined
  const found = isRunning
    ? await runningDeparture(context, request)
    : await suspendedDeparture(context, request)
  return { ...found, blockers: [...found.blockers, ...(await rollbackBlockers(context))] }
}

async function runningDeparture(context: RestoreContext, request: DepartureRequest): Promise<Departure> {
  const { vm, name = 'suspend', args, planSuspend } = request
  const given =
    args === undefined ? await argumentsOfProcess(context, vm) : await argumentsOf(context, vm, args)
  const plan = await planSuspend(name)
  const known = 'recorded' in given ? given.recorded : undefined
  const report = known && (await context.vmJobs.readArguments(known.words, vm, '/'))
  const generation = readerOf(context.target.dialect, context.system)?.generation
  return {
    ...{ name, state: undefined, recorded: known, isGiven: args !== undefined },
    facts: factsOf(known, generation, plan.memoryBytes ?? report?.machine?.memoryBytes),
    blockers: [...plan.blockers, ...('fault' in given ? [unknownArguments(given.fault)] : [])],
    warnings: plan.warnings,
  }
}

async function suspendedDeparture(context: RestoreContext, request: DepartureRequest): Promise<Departure> {
  const { vm, args } = request
  const { store, cancellation } = context
  const directory = store.directoryOf(vm)
  const suspended = await store.suspended(vm, 0, cancellation)
  const name = request.name ?? suspended?.name
  if (name === undefined) return withoutState(`VM '${vm}' does not run and has no suspended state`)
  const state = await store.jobs.inspectForRestore(directory, vm, name)
  const given =
    args === undefined ? await argumentsOfState(context, vm, name) : await argumentsOf(context, vm, args)
  const known = 'recorded' in given ? given.recorded : undefined
  return {
    ...{ name, state, recorded: known, isGiven: args !== undefined },
    facts: factsOf(known, state.generation, state.listed.memoryBytes),
    blockers: [...stateBlockers(state), ...('fault' in given ? [unknownArguments(given.fault)] : [])],
    warnings: [],
  }
}

function withoutState(message: string): Departure {
  const blockers = [{ code: 'no-state', message }] as const
  return {
    ...{ name: 'suspend', state: undefined, recorded: undefined, isGiven: false },
    ...{ facts: factsOf(undefined, undefined, undefined), blockers, warnings: [] },
  }
}

function stateBlockers({ listed }: CheckpointReport): Found<MoveBlocker> {
  const { state, problems, poweredOff, restoredAt, move } = listed
  if (state !== 'complete')
    return [{ code: state, message: problems.map(({ message }) => message).join('; ') }]
  if (move !== undefined && blocksStart(move)) return [{ code: 'move-in-doubt', message: doubtOf(move) }]
  const message =
    restoredAt !== undefined
      ? `checkpoint '${listed.name}' was restored at ${restoredAt.toISOString()}`
      : `checkpoint '${listed.name}' is not the state of a suspended VM`
  return poweredOff && restoredAt === undefined ? [] : [{ code: 'no-state', message }]
}

/** The disks would arrive half put back. */
async function rollbackBlockers(context: RestoreContext): Promise<Found<MoveBlocker>> {
  const found = await findRollback(context)
  if (found === undefined || doneRollback(found) !== undefined) return []
  const message = `a rollback of the disks was interrupted ('${found.path}'): restore the VM here first, which finishes it`
  return [{ code: 'rollback-unfinished', message }]
}

function factsOf(
  recorded: RecordedArguments | undefined,
  generation: string | undefined,
  memoryBytes: number | undefined,
): MoveFacts {
  const { machine, cpuModel } = hostFacts()
  const { words: args = [], directory = '/' } = recorded ?? {}
  return { machine, cpuModel, generation, memoryBytes, args, directory }
}

type Known = { recorded: RecordedArguments } | { fault: string }

function unknownArguments(fault: string): Found<MoveBlocker>[number] {
  return { code: 'arguments-invalid', message: `the bhyve arguments of the VM are not known: ${fault}` }
}

function argumentsOf(
  { vmJobs }: RestoreContext,
  vm: string,
  { words, directory }: NonNullable<DepartureRequest['args']>,
): Promise<Known> {
  return vmJobs.recordable(words, vm, directory)
}

async function argumentsOfState({ store }: RestoreContext, vm: string, name: string): Promise<Known> {
  const found = await store.jobs.readRecordedArguments(store.directoryOf(vm), vm, name)
  return found ?? { fault: "the checkpoint records none: pass the option 'args'" }
}

/** FreeBSD hides them. */
async function argumentsOfProcess({ vmJobs, target, peers }: RestoreContext, vm: string): Promise<Known> {
  const hidden = { fault: "the system does not report those of its process: pass the option 'args'" }
  if (process.platform !== 'linux') return hidden
  for (const located of await socketsIn(vmJobs, [target])) {
    const found = probe(located, peers)
    if (found.kind === 'peer' && found.peer.pid !== -1) return vmJobs.recordableOfProcess(found.peer, vm)
  }
  return hidden
}

/** The caller named another host than the one with which the move is in doubt. */
export function otherHost(vm: string, wanted: string, recorded: string): CheckpointError {
  const message =
    `The move of VM '${vm}' to host '${recorded}' is in doubt, so it cannot be moved to host '${wanted}'. Nothing was changed. ` +
    `Call moveVirtualMachine with host '${recorded}', which resolves the move`
  return new CheckpointError('ERR_MOVE_IN_DOUBT', message, { vm, vmState: 'unknown', retryable: false })
}
