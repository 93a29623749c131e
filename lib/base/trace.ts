/**
 * What the library lets others see of its work: a tracing channel of `node:diagnostics_channel` for each operation, and
 * with `NODE_DEBUG=bhyve-checkpoint` a line on standard error at every decision. docs/insight.md has the payloads.
 */
import { tracingChannel } from 'node:diagnostics_channel'
import { debuglog } from 'node:util'
import type { Problem, VmState } from './types.js'

/** What has a channel: `bhyve-checkpoint:<operation>`. */
export type Operation =
  | 'create'
  | 'suspend'
  | 'list'
  | 'get'
  | 'destroy'
  | 'destroyAll'
  | 'verify'
  | 'pin'
  | 'prune'
  | 'listStored'
  | 'suspendedCheckpoint'
  | 'pause'
  | 'resume'
  | 'listVirtualMachines'
  | 'planRestore'
  | 'restore'

export const operations: readonly Operation[] = [
  'create',
  'suspend',
  'list',
  'get',
  'destroy',
  'destroyAll',
  'verify',
  'pin',
  'prune',
  'listStored',
  'suspendedCheckpoint',
  'pause',
  'resume',
  'listVirtualMachines',
  'planRestore',
  'restore',
]

/** What the subscribers of a channel get, the same object at every event of a call. */
export interface OperationEvent {
  operation: Operation
  vm?: string
  /** Its name. */
  checkpoint?: string
  /** Once it has resolved. */
  result?: OperationResult
  /** Once it has rejected: a CheckpointError or an AbortError. */
  error?: unknown
}

/** Sizes and numbers. bhyve's arguments are never among them: they may hold a password. */
export interface OperationResult {
  memoryBytes?: number
  storedBytes?: number
  freedBytes?: number
  bytesRead?: number
  count?: number
  ok?: boolean
  pid?: number
  state?: VmState
}

type Channel = ReturnType<typeof tracingChannel<unknown, OperationEvent>>

const channels = new Map<Operation, Channel>(
  operations.map((operation) => [
    operation,
    tracingChannel<unknown, OperationEvent>(`bhyve-checkpoint:${operation}`),
  ]),
)

/** Runs the call under its channel. `summary` is what others see of its result. */
export async function traced<T>(
  event: OperationEvent,
  call: () => Promise<T>,
  summary: (value: T) => OperationResult,
): Promise<T> {
  const channel = channels.get(event.operation)
  if (channel === undefined) return call()
  const outcome: { value?: T } = {}
  await channel.tracePromise(async () => {
    const value = await call()
    outcome.value = value
    return summary(value)
  }, event)
  return outcome.value as T
}

const log = debuglog('bhyve-checkpoint')

/** One decision about a VM. `facts` are only looked at where somebody listens. */
export function traceDecision(vm: string, decision: string, facts: Record<string, unknown> = {}): void {
  if (log.enabled) log('%s: %s %j', vm, decision, facts)
}

/** Whether what bhyve left is a checkpoint. */
export function traceVerdict(vm: string, problems: readonly Problem[]): void {
  traceDecision(vm, 'verdict', { whole: problems.length === 0, problems: problems.map(({ code }) => code) })
}
