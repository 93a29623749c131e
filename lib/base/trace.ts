/** Logs every decision to standard error if `NODE_DEBUG=bhyve-checkpoint` is set. docs/insight.md has an example. */
import { debuglog } from 'node:util'
import type { Problem } from './problem.js'

const log = debuglog('bhyve-checkpoint')

type Facts = Record<string, unknown>

/** Logs one decision about a VM. `facts` are formatted, and a function is called, only if logging is enabled. */
export function traceDecision(vm: string, decision: string, facts: Facts | (() => Facts) = {}): void {
  if (log.enabled) log('%s: %s %j', vm, decision, typeof facts === 'function' ? facts() : facts)
}

/** Logs whether bhyve wrote a complete checkpoint. */
export function traceVerdict(vm: string, problems: readonly Problem[]): void {
  traceDecision(vm, 'verdict', {
    complete: problems.length === 0,
    problems: problems.map(({ code }) => code),
  })
}
