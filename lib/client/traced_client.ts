/** The client that users get: it traces every call on a channel of `node:diagnostics_channel`. */
import { tracingChannel } from 'node:diagnostics_channel'
import type { Checkpoint } from '../base/types.js'
import type { MachineCalls } from './calls/machine_calls.js'
import type { RestoringCalls } from './calls/restoring_calls.js'
import type { SavingCalls } from './calls/saving_calls.js'
import type { StoredCalls } from './calls/stored_calls.js'
import type { CheckpointClient } from './checkpoint_client.js'
import { originOf, withOrigin } from './call_origin.js'
import type { Operation, OperationEvent, OperationResult } from './operation_event.js'

type Method = Exclude<keyof CheckpointClient, 'idle' | typeof Symbol.asyncDispose>

/** The calls of a client, grouped by subject. */
interface CallGroups {
  saving: SavingCalls
  stored: StoredCalls
  machines: MachineCalls
  restoring: RestoringCalls
}

interface TracedCall<M extends Method> {
  operation: Operation
  /** The VM and the checkpoint of the call. */
  about: (...args: Parameters<CheckpointClient[M]>) => { vm?: unknown; checkpoint?: unknown }
  /** Runs the call. */
  run: (callGroups: CallGroups, ...args: Parameters<CheckpointClient[M]>) => ReturnType<CheckpointClient[M]>
  /** The part of the result that subscribers receive. */
  summary: (value: Awaited<ReturnType<CheckpointClient[M]>>) => OperationResult
}

const sizesOf = ({ memoryBytes, storedBytes }: Checkpoint): OperationResult => ({ memoryBytes, storedBytes })
const countOf = ({ length }: readonly unknown[]): OperationResult => ({ count: length })
const nothing = (): OperationResult => ({})
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
    run: ({ stored }, ...args) => stored.destroyCheckpoint(...args),
    summary: nothing,
  },
  destroyAll: {
    operation: 'destroyAll',
    about: ofVm,
    run: ({ stored }, ...args) => stored.destroyAll(...args),
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
    run: ({ stored }, ...args) => stored.pinCheckpoint(...args),
    summary: nothing,
  },
  labelCheckpoint: {
    operation: 'label',
    about: ofStored,
    run: ({ stored }, ...args) => stored.labelCheckpoint(...args),
    summary: nothing,
  },
  pruneCheckpoints: {
    operation: 'prune',
    about: ofVm,
    run: ({ stored }, ...args) => stored.pruneCheckpoints(...args),
    summary: ({ removed, freedBytes }) => ({ count: removed.length, freedBytes }),
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
}

export const operations: readonly Operation[] = Object.values(calls).map(({ operation }) => operation)

export function tracedClient(callGroups: CallGroups, idle: () => Promise<void>): CheckpointClient {
  const traced = Object.entries(calls).map(([method, call]) => [method, tracedCall(callGroups, call)])
  const methods = Object.fromEntries(traced) as Pick<CheckpointClient, Method>
  return { ...methods, idle, [Symbol.asyncDispose]: idle }
}

type AnyCall = (...args: unknown[]) => Promise<unknown>
interface AnyTracedCall {
  operation: Operation
  run: (callGroups: CallGroups, ...args: never[]) => Promise<unknown>
  about: (...args: never[]) => { vm?: unknown; checkpoint?: unknown }
  summary: (value: never) => OperationResult
}

function tracedCall(callGroups: CallGroups, { operation, about, run, summary }: AnyTracedCall): AnyCall {
  const channel = channelOf(operation)
  const traced: AnyCall = async (...args) => {
    const origin = originOf(traced)
    const event = eventOf(operation, about(...(args as never[])))
    const outcome: { value?: unknown } = {}
    await channel.tracePromise(async () => {
      const value = await withOrigin(run(callGroups, ...(args as never[])), origin)
      outcome.value = value
      return summary(value as never)
    }, event)
    return outcome.value
  }
  return traced
}

type Channel = ReturnType<typeof tracingChannel<unknown, OperationEvent>>

const channels = new Map<Operation, Channel>()

function channelOf(operation: Operation): Channel {
  const channel = channels.get(operation) ?? tracingChannel(`bhyve-checkpoint:${operation}`)
  channels.set(operation, channel)
  return channel
}

/** The call has not checked its arguments yet, so values that are not strings are left out of the event. */
function eventOf(
  operation: Operation,
  { vm, checkpoint }: { vm?: unknown; checkpoint?: unknown },
): OperationEvent {
  const isText = (value: unknown): value is string => typeof value === 'string'
  return { operation, ...(isText(vm) ? { vm } : {}), ...(isText(checkpoint) ? { checkpoint } : {}) }
}
