/** A client whose every call runs under its tracing channel; it decides nothing. */
import type { CheckpointClient } from './checkpoint_client.js'
import { type Operation, type OperationEvent, type OperationResult, traced } from '../base/trace.js'
import type { Checkpoint } from '../base/types.js'

/** What was passed need not be what the types promise: it is checked by the call, not here. */
function eventOf(operation: Operation, vm?: unknown, checkpoint?: unknown): OperationEvent {
  const isText = (value: unknown): value is string => typeof value === 'string'
  return { operation, ...(isText(vm) ? { vm } : {}), ...(isText(checkpoint) ? { checkpoint } : {}) }
}

function nameIn(options: { name?: unknown } | null | undefined, otherwise: string): unknown {
  return options?.name ?? otherwise
}

const sizesOf = ({ memoryBytes, storedBytes }: Checkpoint): OperationResult => ({ memoryBytes, storedBytes })
const countOf = ({ length }: readonly unknown[]): OperationResult => ({ count: length })
const nothing = (): OperationResult => ({})

export function tracedClient(client: CheckpointClient): CheckpointClient {
  return {
    createCheckpoint: (vm, options) => {
      const event = eventOf('create', vm, nameIn(options, 'checkpoint'))
      return traced(event, () => client.createCheckpoint(vm, options), sizesOf)
    },
    suspend: (vm, options) => {
      const event = eventOf('suspend', vm, nameIn(options, 'suspend'))
      return traced(event, () => client.suspend(vm, options), sizesOf)
    },
    listCheckpoints: (vm) => traced(eventOf('list', vm), () => client.listCheckpoints(vm), countOf),
    getCheckpoint: (vm, name) =>
      traced(eventOf('get', vm, name), () => client.getCheckpoint(vm, name), sizesOf),
    destroyCheckpoint: (vm, name) =>
      traced(eventOf('destroy', vm, name), () => client.destroyCheckpoint(vm, name), nothing),
    destroyAll: (vm) => traced(eventOf('destroyAll', vm), () => client.destroyAll(vm), countOf),
    verifyCheckpoint: (vm, name, options) =>
      traced(
        eventOf('verify', vm, name),
        () => client.verifyCheckpoint(vm, name, options),
        ({ ok, bytesRead }) => ({ ok, bytesRead }),
      ),
    pinCheckpoint: (vm, name, pinned) =>
      traced(eventOf('pin', vm, name), () => client.pinCheckpoint(vm, name, pinned), nothing),
    pruneCheckpoints: (vm, policy) =>
      traced(
        eventOf('prune', vm),
        () => client.pruneCheckpoints(vm, policy),
        ({ removed, freedBytes }) => ({ count: removed.length, freedBytes }),
      ),
    listStored: () => traced(eventOf('listStored'), () => client.listStored(), countOf),
    suspendedCheckpoint: (vm, options) =>
      traced(
        eventOf('suspendedCheckpoint', vm),
        () => client.suspendedCheckpoint(vm, options),
        (found) => (found === undefined ? { count: 0 } : { count: 1, ...sizesOf(found) }),
      ),
    pause: (vm, options) => traced(eventOf('pause', vm), () => client.pause(vm, options), nothing),
    resume: (vm, options) => traced(eventOf('resume', vm), () => client.resume(vm, options), nothing),
    listVirtualMachines: (options) =>
      traced(eventOf('listVirtualMachines'), () => client.listVirtualMachines(options), countOf),
    planRestore: (vm, name, options) =>
      traced(
        eventOf('planRestore', vm, name),
        () => client.planRestore(vm, name, options),
        ({ blockers }) => ({ ok: blockers.length === 0 }),
      ),
    restore: (vm, name, options) =>
      traced(
        eventOf('restore', vm, name),
        () => client.restore(vm, name, options),
        ({ pid }) => ({ pid }),
      ),
    idle: () => client.idle(),
    [Symbol.asyncDispose]: () => client[Symbol.asyncDispose](),
  }
}
