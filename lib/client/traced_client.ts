/** The client that users get: it traces every call on a channel of `node:diagnostics_channel`. */
import { Readable } from 'node:stream'
import type { Operation } from '../base/operations.js'
import type { Checkpoint } from '../base/types.js'
import type { ArchiveCalls } from './calls/archive_calls.js'
import type { DiagnosisCalls } from './calls/diagnosis_calls.js'
import type { MachineCalls } from './calls/machine_calls.js'
import type { MoveCalls } from './calls/move_calls.js'
import type { RestoringCalls } from './calls/restoring_calls.js'
import type { RemovingCalls } from './calls/removing_calls.js'
import type { SavingCalls } from './calls/saving_calls.js'
import type { StoredCalls } from './calls/stored_calls.js'
import type { CheckpointClient } from './checkpoint_client.js'
import { originOf, withOrigin } from './call_origin.js'
import { tracedIteration } from './traced_iteration.js'
import { channelOf, eventOf } from './channels.js'
import type { OperationResults } from './operation_event.js'
import type { Session } from './session.js'

/** Calls that start no operation, and those that return no promise. */
type Others = 'idle' | 'inFlight' | 'listAllCheckpoints' | 'exportCheckpoint' | typeof Symbol.asyncDispose
type Method = Exclude<keyof CheckpointClient, Others>

/** The calls of a client, grouped by subject. */
interface CallGroups {
  saving: SavingCalls
  stored: StoredCalls
  removing: RemovingCalls
  machines: MachineCalls
  restoring: RestoringCalls
  diagnosis: DiagnosisCalls
  archives: ArchiveCalls
  moves: MoveCalls
}

interface CallOf<M extends Method, Name extends Operation> {
  operation: Name
  /** The VM and the checkpoint of the call. */
  about: (...args: Parameters<CheckpointClient[M]>) => { vm?: unknown; checkpoint?: unknown }
  /** Runs the call. */
  run: (callGroups: CallGroups, ...args: Parameters<CheckpointClient[M]>) => ReturnType<CheckpointClient[M]>
  /** The part of the result that subscribers receive. */
  summary: (value: Awaited<ReturnType<CheckpointClient[M]>>) => OperationResults[Name]
}

type TracedCall<M extends Method> = { [Name in Operation]: CallOf<M, Name> }[Operation]

const sizesOf = ({ memoryBytes, storedBytes }: Checkpoint) => ({ memoryBytes, storedBytes })
const countOf = ({ length }: readonly unknown[]): { count: number } => ({ count: length })
const nothing = (): object => ({})
const ofVm = (vm: string): { vm: string } => ({ vm })
const ofStored = (vm: string, checkpoint: string): { vm: string; checkpoint: string } => ({ vm, checkpoint })
const ofNoVm = (): object => ({})

/** Every call of a client: how it is traced, and what runs it. */
const calls: { [M in Method]: TracedCall<M> } = {
  createCheckpoint: {
    operation: 'create',
    about: (vm, options) => ({ vm, checkpoint: options?.name ?? 'checkpoint' }),
    run: ({ saving }, ...args) => saving.createCheckpoint(...args),
    summary: sizesOf,
  },
  suspend: {
    operation: 'suspend',
    about: (vm, options) => ({ vm, checkpoint: options?.name ?? 'suspend' }),
    run: ({ saving }, ...args) => saving.suspend(...args),
    summary: sizesOf,
  },
  listCheckpoints: {
    operation: 'list',
    about: ofVm,
    run: ({ stored }, ...args) => stored.listCheckpoints(...args),
    summary: countOf,
  },
  getCheckpoint: {
    operation: 'get',
    about: ofStored,
    run: ({ stored }, ...args) => stored.getCheckpoint(...args),
    summary: sizesOf,
  },
  destroyCheckpoint: {
    operation: 'destroy',
    about: ofStored,
    run: ({ removing }, ...args) => removing.destroyCheckpoint(...args),
    summary: nothing,
  },
  destroyAll: {
    operation: 'destroyAll',
    about: ofVm,
    run: ({ removing }, ...args) => removing.destroyAll(...args),
    summary: countOf,
  },
  verifyCheckpoint: {
    operation: 'verify',
    about: ofStored,
    run: ({ stored }, ...args) => stored.verifyCheckpoint(...args),
    summary: ({ ok, bytesRead }) => ({ ok, bytesRead }),
  },
  pinCheckpoint: {
    operation: 'pin',
    about: ofStored,
    run: ({ removing }, ...args) => removing.pinCheckpoint(...args),
    summary: nothing,
  },
  labelCheckpoint: {
    operation: 'label',
    about: ofStored,
    run: ({ removing }, ...args) => removing.labelCheckpoint(...args),
    summary: nothing,
  },
  pruneCheckpoints: {
    operation: 'prune',
    about: ofVm,
    run: ({ removing }, ...args) => removing.pruneCheckpoints(...args),
    summary: ({ removed, freedBytes }) => ({ count: removed.length, freedBytes }),
  },
  pruneAll: {
    operation: 'pruneAll',
    about: ofNoVm,
    run: ({ removing }, ...args) => removing.pruneAll(...args),
    summary: (vms) => ({
      count: vms.reduce((count, { removed }) => count + removed.length, 0),
      freedBytes: vms.reduce((bytes, { freedBytes }) => bytes + freedBytes, 0),
      ok: vms.every(({ error }) => error === undefined),
    }),
  },
  listStored: {
    operation: 'listStored',
    about: ofNoVm,
    run: ({ stored }, ...args) => stored.listStored(...args),
    summary: countOf,
  },
  suspendedCheckpoint: {
    operation: 'suspendedCheckpoint',
    about: ofVm,
    run: ({ stored }, ...args) => stored.suspendedCheckpoint(...args),
    summary: (found) => (found === undefined ? { count: 0 } : { count: 1, ...sizesOf(found) }),
  },
  pause: {
    operation: 'pause',
    about: ofVm,
    run: ({ machines }, ...args) => machines.pause(...args),
    summary: nothing,
  },
  resume: {
    operation: 'resume',
    about: ofVm,
    run: ({ machines }, ...args) => machines.resume(...args),
    summary: nothing,
  },
  listVirtualMachines: {
    operation: 'listVirtualMachines',
    about: ofNoVm,
    run: ({ machines }, ...args) => machines.listVirtualMachines(...args),
    summary: countOf,
  },
  planRestore: {
    operation: 'planRestore',
    about: ofStored,
    run: ({ restoring }, ...args) => restoring.planRestore(...args),
    summary: ({ blockers }) => ({ ok: blockers.length === 0 }),
  },
  restore: {
    operation: 'restore',
    about: ofStored,
    run: ({ restoring }, ...args) => restoring.restore(...args),
    summary: ({ pid }) => ({ pid }),
  },
  planCheckpoint: {
    operation: 'planCheckpoint',
    about: (vm, options) => ({ vm, checkpoint: options?.name }),
    run: ({ diagnosis }, ...args) => diagnosis.planCheckpoint(...args),
    summary: ({ blockers }) => ({ ok: blockers.length === 0 }),
  },
  diagnose: {
    operation: 'diagnose',
    about: ofNoVm,
    run: ({ diagnosis }, ...args) => diagnosis.diagnose(...args),
    summary: (findings) => ({
      ok: findings.every(({ level }) => level !== 'problem'),
      count: findings.length,
    }),
  },
  importCheckpoint: {
    operation: 'import',
    about: (vm, checkpoint) => ({ vm, checkpoint }),
    run: ({ archives }, ...args) => archives.importCheckpoint(...args),
    summary: sizesOf,
  },
  moveVirtualMachine: {
    operation: 'move',
    about: (vm, options) => ({ vm, checkpoint: options?.name }),
    run: ({ moves }, ...args) => moves.moveVirtualMachine(...args),
    summary: ({ outcome, offlineMs }) => (offlineMs === undefined ? { outcome } : { outcome, offlineMs }),
  },
  receiveVirtualMachine: {
    operation: 'receive',
    about: ofNoVm,
    run: ({ moves }, ...args) => moves.receiveVirtualMachine(...args),
    summary: ({ outcome }) => ({ outcome }),
  },
  resolveMove: {
    operation: 'resolveMove',
    about: ofStored,
    run: ({ moves }, ...args) => moves.resolveMove(...args),
    summary: nothing,
  },
}

/** What an export reads ahead of its consumer. */
const exportBufferBytes = 1024 * 1024

/** What a client needs to know of its session. */
type Calling = Pick<Session, 'idle' | 'inFlight'>

export function tracedClient(callGroups: CallGroups, session: Calling): CheckpointClient {
  const traced = Object.entries(calls).map(([method, call]) => [method, tracedCall(callGroups, call)])
  const methods = Object.fromEntries(traced) as Pick<CheckpointClient, Method>
  return {
    ...methods,
    listAllCheckpoints: (options) =>
      tracedIteration(
        { operation: 'listAll', size: () => 1, summary: (count) => ({ count }) },
        callGroups.stored.listAllCheckpoints(options),
      ),
    exportCheckpoint: (vm, name, options) => {
      const archive = callGroups.archives.exportCheckpoint(vm, name, options, (error) =>
        stream.destroy(error),
      )
      const traced = tracedIteration(
        {
          operation: 'export',
          about: ofStored(vm, name),
          size: ({ length }) => length,
          summary: (bytes) => ({ bytes }),
        },
        archive,
      )
      const stream = Readable.from(traced, { objectMode: false, highWaterMark: exportBufferBytes })
      return stream
    },
    inFlight: () => session.inFlight.list(),
    idle: (options) => session.idle(options),
    [Symbol.asyncDispose]: () => session.idle(),
  }
}

type AnyCall = (...args: unknown[]) => Promise<unknown>
interface AnyTracedCall {
  operation: Operation
  run: (callGroups: CallGroups, ...args: never[]) => Promise<unknown>
  about: (...args: never[]) => { vm?: unknown; checkpoint?: unknown }
  summary: (value: never) => object
}

function tracedCall(callGroups: CallGroups, { operation, about, run, summary }: AnyTracedCall): AnyCall {
  const traced: AnyCall = async (...args) => {
    const origin = originOf(traced)
    const event = eventOf(operation, about(...(args as never[])))
    const outcome: { value?: unknown } = {}
    await channelOf(operation).tracePromise(async () => {
      const value = await withOrigin(run(callGroups, ...(args as never[])), origin)
      outcome.value = value
      return summary(value as never)
    }, event)
    return outcome.value
  }
  return traced
}
