/** Checks a prune policy. */
import { assertBoolean, assertOptions, invalid } from '../base/assertions.js'
import { membersOf } from '../base/union_members.js'
import type { PrunePolicy } from '../base/types.js'

type Count = 'keepLast' | 'keepHourly' | 'keepDaily' | 'keepWeekly' | 'keepMonthly'
type Rule = Count | 'keepWithinMs' | 'maxBytes'

const counts = membersOf<Count>({
  keepLast: true,
  keepHourly: true,
  keepDaily: true,
  keepWeekly: true,
  keepMonthly: true,
})
const rules: readonly Rule[] = [...counts, 'keepWithinMs', 'maxBytes']
const others = membersOf<Exclude<keyof PrunePolicy, Rule>>({ namePrefix: true, labels: true, dryRun: true })

/**
 * A checked copy of a policy, because the caller may change it while the call waits. Reads every property by its name:
 * an object may inherit `dryRun` or `namePrefix`, or compute them, and a copy of its own properties alone would remove
 * other checkpoints. Throws `ERR_INVALID_OPTION`.
 */
export function checkedPolicy(policy: PrunePolicy): PrunePolicy {
  const known = [...rules, ...others]
  assertOptions(policy, 'the policy', known)
  const copy: PrunePolicy = Object.fromEntries(known.map((name) => [name, policy[name]]))
  assertPolicy(copy)
  return copy.labels === undefined ? copy : { ...copy, labels: { ...copy.labels } }
}

function assertPolicy(policy: PrunePolicy): void {
  for (const rule of rules) {
    const value: unknown = policy[rule]
    if (value !== undefined && !(typeof value === 'number' && value >= 0))
      throw invalid(`The option '${rule}' must be a non-negative number`, value)
  }
  for (const rule of counts) {
    const value: unknown = policy[rule]
    if (value !== undefined && !Number.isInteger(value))
      throw invalid(`The option '${rule}' must be a whole number`, value)
  }
  assertScope(policy)
  const { dryRun = false } = policy
  assertBoolean(dryRun, 'dryRun')
  if (rules.every((rule) => policy[rule] === undefined)) {
    const names = rules.map((rule) => `'${rule}'`).join(', ')
    throw invalid(`A policy needs at least one of ${names}`, policy)
  }
}

/** An empty prefix, or labels without an entry, would match every checkpoint, for example if a variable was not set. */
function assertScope({ namePrefix, labels }: { namePrefix?: unknown; labels?: unknown }): void {
  if (namePrefix !== undefined && (typeof namePrefix !== 'string' || namePrefix === ''))
    throw invalid("The option 'namePrefix' must be a non-empty string", namePrefix)
  if (labels === undefined) return
  const isObject = typeof labels === 'object' && labels !== null && !Array.isArray(labels)
  const values: unknown[] = isObject ? Object.values(labels) : []
  if (values.length === 0 || !values.every((value) => typeof value === 'string'))
    throw invalid("The option 'labels' must be a non-empty object whose values are strings", labels)
}
