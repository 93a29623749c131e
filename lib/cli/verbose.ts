/** The option `--verbose`: each call of the library with its duration, and the causes of an error. */
import { subscribe } from 'node:diagnostics_channel'
import type * as Api from '../index.js'
import type { Output } from './output.js'

/** The properties that are printed of an event. */
interface Event {
  operation: string
  vm?: string
  checkpoint?: string
  result?: object
  error?: unknown
}

const maxCauses = 10

/** From now on, every call is printed when it starts and when it ends. */
export function traceCalls({ operations }: typeof Api, output: Output): void {
  const startedAt = new WeakMap<object, number>()
  for (const operation of operations) {
    const channel = `tracing:bhyve-checkpoint:${operation}`
    subscribe(`${channel}:start`, (message) => {
      startedAt.set(message as Event, performance.now())
      output.notice(`${nameOf(message as Event)}: started`)
    })
    subscribe(`${channel}:asyncEnd`, (message) => {
      const elapsedMs = performance.now() - (startedAt.get(message as Event) ?? 0)
      output.notice(endOf(message as Event, elapsedMs))
    })
  }
}

function endOf(event: Event, elapsedMs: number): string {
  const { result, error } = event
  const how = error === undefined ? 'done' : 'failed'
  const facts = result === undefined ? '' : ` ${JSON.stringify(result)}`
  return `${nameOf(event)}: ${how} after ${String(Math.round(elapsedMs))} ms${facts}`
}

function nameOf({ operation, vm, checkpoint }: Event): string {
  const about = [vm, checkpoint].filter((part) => part !== undefined).join('/')
  return about === '' ? operation : `${operation} ${about}`
}

/** The chain of causes of an error, outermost first. */
export function causeLines(error: unknown): string[] {
  const lines: string[] = []
  for (let cause = causeOf(error); cause !== undefined && lines.length < maxCauses; cause = causeOf(cause))
    lines.push(`caused by ${cause.name}: ${cause.message}`)
  return lines
}

function causeOf(error: unknown): Error | undefined {
  return error instanceof Error && error.cause instanceof Error ? error.cause : undefined
}
