/** The rules of a prune policy: to which checkpoints it applies, and which ones it keeps. */
import { byAge } from '../../checkpoint/read.js'
import type { ListedCheckpoint, PrunePolicy } from '../../base/types.js'
import { dayOf, hourOf, monthOf, weekOf } from './calendar.js'

/** The checkpoints that the policy applies to. */
export function inScope(
  checkpoints: readonly ListedCheckpoint[],
  { namePrefix = '', labels = {} }: PrunePolicy,
): ListedCheckpoint[] {
  const wanted = Object.entries(labels)
  return checkpoints.filter(
    ({ name, labels: present = {} }) =>
      name.startsWith(namePrefix) && wanted.every(([label, value]) => present[label] === value),
  )
}

type KeepRule = Exclude<keyof PrunePolicy, 'maxBytes' | 'dryRun' | 'namePrefix' | 'labels'>

/** `newestFirst` are the complete checkpoints, because a damaged checkpoint cannot be restored. */
interface Candidates {
  all: readonly ListedCheckpoint[]
  newestFirst: readonly ListedCheckpoint[]
  now: number
}

const keepRules: Record<KeepRule, (candidates: Candidates, value: number) => ListedCheckpoint[]> = {
  keepLast: ({ newestFirst }, count) => newestFirst.slice(0, count),
  keepHourly: ({ newestFirst }, count) => lastOfEach(hourOf, newestFirst, count),
  keepDaily: ({ newestFirst }, count) => lastOfEach(dayOf, newestFirst, count),
  keepWeekly: ({ newestFirst }, count) => lastOfEach(weekOf, newestFirst, count),
  keepMonthly: ({ newestFirst }, count) => lastOfEach(monthOf, newestFirst, count),
  keepWithinMs: ({ all, now }, milliseconds) =>
    all.filter(({ createdAt }) => createdAt !== undefined && now - createdAt.getTime() < milliseconds),
}

/** Undefined if the policy has no keep rule. */
export function keptByRules(
  checkpoints: readonly ListedCheckpoint[],
  policy: PrunePolicy,
  now: number,
): ReadonlySet<ListedCheckpoint> | undefined {
  const complete = checkpoints.filter(({ state }) => state === 'complete')
  const candidates = { all: checkpoints, newestFirst: complete.sort(byAge).reverse(), now }
  const kept = Object.entries(keepRules).flatMap(([name, rule]) => {
    const value = policy[name as KeepRule]
    return value === undefined ? [] : [rule(candidates, value)]
  })
  return kept.length === 0 ? undefined : new Set(kept.flat())
}

/** The newest checkpoint of each of the first `count` periods that have one. */
function lastOfEach(
  periodOf: (date: Date) => string,
  newestFirst: readonly ListedCheckpoint[],
  count: number,
): ListedCheckpoint[] {
  const last = new Map<string, ListedCheckpoint>()
  for (const checkpoint of newestFirst) {
    if (checkpoint.createdAt === undefined) continue
    const period = periodOf(checkpoint.createdAt)
    if (!last.has(period)) last.set(period, checkpoint)
  }
  return [...last.values()].slice(0, count)
}
