/** The tracing channels of the operations. */
import { tracingChannel } from 'node:diagnostics_channel'
import type { Operation } from '../base/operations.js'
import type { OperationEvent } from './operation_event.js'

type Channel = ReturnType<typeof tracingChannel<unknown, OperationEvent>>

const channels = new Map<Operation, Channel>()

export function channelOf(operation: Operation): Channel {
  const channel = channels.get(operation) ?? tracingChannel(`bhyve-checkpoint:${operation}`)
  channels.set(operation, channel)
  return channel
}

/** The call has not checked its arguments yet, so values that are not strings are left out of the event. */
export function eventOf(
  operation: Operation,
  { vm, checkpoint }: { vm?: unknown; checkpoint?: unknown } = {},
): OperationEvent {
  const isText = (value: unknown): value is string => typeof value === 'string'
  const event = { operation, ...(isText(vm) ? { vm } : {}), ...(isText(checkpoint) ? { checkpoint } : {}) }
  // TypeScript compares a union with at most 25 members of another.
  return event as OperationEvent
}
