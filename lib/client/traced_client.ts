/** A client whose every call runs under a tracing channel of `node:diagnostics_channel`; it decides nothing. */
import { tracingChannel } from 'node:diagnostics_channel'
import type { Checkpoint } from '../base/types.js'
import type { CheckpointClient } from './checkpoint_client.js'
import type { Operation, OperationEvent, OperationResult } from './operation_event.js'

type Method = Exclude<keyof CheckpointClient, 'idle' | typeof Symbol.asyncDispose>

interface TracedCall<M extends Method> {
  operation: Operation
  /** The VM and the checkpoint it is about. */
  about: (...args: Parameters<CheckpointClient[M]>) => { vm?: unknown; checkpoint?: unknown }
  /** What others see of its result. */
  summary: (value: Awaited<ReturnType<CheckpointClient[M]>>) => OperationResult
}

const sizesOf = ({ memoryBytes, storedBytes }: Checkpoint): OperationResult => ({ memoryBytes, storedBytes })
const countOf = ({ length }: readonly unknown[]): OperationResult => ({ count: length })
const nothing = (): OperationResult => ({})
const ofVm = (vm: string): { vm: string } => ({ vm })
const ofStored = (vm: string, checkpoint: string): { vm: string; checkpoint: string } => ({ vm, checkpoint })
const ofNoVm = (): object => ({})

/** Every call of a client, and the only place where it is said how it is traced. */
const calls: { [M in Method]: TracedCall<M> } = {
  createCheckpoint: {
    operation: 'create',
    about: (vm, options) => ({ vm, checkpoint: options?.name ?? 'checkpoint' }),
    summary: sizesOf,
  },
  suspend: {
    operation: 'suspend',
    about: (vm, options) => ({ vm, checkpoint: options?.name ?? 'suspend' }),
    summary: sizesOf,
  },
  listCheckpoints: { operation: 'list', about: ofVm, summary: countOf },
  getCheckpoint: { operation: 'get', about: ofStored, summary: sizesOf },
  destroyCheckpoint: { operation: 'destroy', about: ofStored, summary: nothing },
  destroyAll: { operation: 'destroyAll', about: ofVm, summary: countOf },
  verifyCheckpoint: {
    operation: 'verify',
    about: ofStored,
    summary: ({ ok, bytesRead }) => ({ ok, bytesRead }),
  },
  pinCheckpoint: { operation: 'pin', about: ofStored, summary: nothing },
  pruneCheckpoints: {
    operation: 'prune',
    about: ofVm,
    summary: ({ removed, freedBytes }) => ({ count: removed.length, freedBytes }),
  },
  listStored: { operation: 'listStored', about: ofNoVm, summary: countOf },
  suspendedCheckpoint: {
    operation: 'suspendedCheckpoint',
    about: ofVm,
    summary: (found) => (found === undefined ? { count: 0 } : { count: 1, ...sizesOf(found) }),
  },
  pause: { operation: 'pause', about: ofVm, summary: nothing },
  resume: { operation: 'resume', about: ofVm, summary: nothing },
  listVirtualMachines: { operation: 'listVirtualMachines', about: ofNoVm, summary: countOf },
  planRestore: {
    operation: 'planRestore',
    about: ofStored,
    summary: ({ blockers }) => ({ ok: blockers.length === 0 }),
  },
  restore: { operation: 'restore', about: ofStored, summary: ({ pid }) => ({ pid }) },
}

export const operations: readonly Operation[] = Object.values(calls).map(({ operation }) => operation)

export function tracedClient(client: CheckpointClient): CheckpointClient {
  const traced = Object.entries(calls).map(([method, call]) => [method, tracedCall(client, method, call)])
  return {
    ...(Object.fromEntries(traced) as Pick<CheckpointClient, Method>),
    idle: () => client.idle(),
    [Symbol.asyncDispose]: () => client[Symbol.asyncDispose](),
  }
}

type AnyCall = (...args: unknown[]) => Promise<unknown>
interface AnyTracedCall {
  operation: Operation
  about: (...args: never[]) => { vm?: unknown; checkpoint?: unknown }
  summary: (value: never) => OperationResult
}

/** The compiler has checked the table; from here on a call is a name. */
function tracedCall(client: CheckpointClient, method: string, call: AnyTracedCall): AnyCall {
  const { operation, about, summary } = call
  const channel = channelOf(operation)
  const run = Reflect.get(client, method) as AnyCall
  return async (...args) => {
    const event = eventOf(operation, about(...(args as never[])))
    const outcome: { value?: unknown } = {}
    await channel.tracePromise(async () => {
      const value = await run.apply(client, args)
      outcome.value = value
      return summary(value as never)
    }, event)
    return outcome.value
  }
}

type Channel = ReturnType<typeof tracingChannel<unknown, OperationEvent>>

const channels = new Map<Operation, Channel>()

function channelOf(operation: Operation): Channel {
  const channel = channels.get(operation) ?? tracingChannel(`bhyve-checkpoint:${operation}`)
  channels.set(operation, channel)
  return channel
}

/** What was passed need not be what the types promise: it is checked by the call, not here. */
function eventOf(
  operation: Operation,
  { vm, checkpoint }: { vm?: unknown; checkpoint?: unknown },
): OperationEvent {
  const isText = (value: unknown): value is string => typeof value === 'string'
  return { operation, ...(isText(vm) ? { vm } : {}), ...(isText(checkpoint) ? { checkpoint } : {}) }
}
