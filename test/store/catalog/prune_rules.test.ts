/** The calendar rules of prune policies, and the names and labels that a policy applies to. */
import fc from 'fast-check'
import t from 'tap'
import { choose } from '../../../dist/store/catalog/prune.js'
import type { ListedCheckpoint, PrunePolicy } from '../../../dist/base/types.js'
import { rejection, runScript } from '../../support/index.js'
import { store } from '../../support/stored.js'

interface Case {
  of: string
  zone: string
  times: string[]
  policy: PrunePolicy
  removed: string[]
}

const cases: Case[] = [
  {
    of: 'the last of each day is kept, and days without a checkpoint are not counted',
    zone: 'UTC',
    times: ['2026-01-01T08:00Z', '2026-01-02T08:00Z', '2026-01-02T11:00Z', '2026-01-05T10:00Z'],
    policy: { keepDaily: 2 },
    removed: ['2026-01-01T08:00Z', '2026-01-02T08:00Z'],
  },
  {
    of: 'a day ends at midnight of the local time',
    zone: 'America/New_York',
    times: ['2026-01-02T04:59Z', '2026-01-02T05:00Z', '2026-01-03T04:59Z'],
    policy: { keepDaily: 5 },
    removed: ['2026-01-02T05:00Z'],
  },
  {
    of: 'the hour that is repeated when daylight saving time ends counts once',
    zone: 'Europe/Berlin',
    times: ['2026-10-25T00:30Z', '2026-10-25T01:30Z', '2026-10-25T02:30Z'],
    policy: { keepHourly: 2 },
    removed: ['2026-10-25T00:30Z'],
  },
  {
    of: 'no hour is counted for the one that daylight saving time skips',
    zone: 'Europe/Berlin',
    times: ['2026-03-29T00:10Z', '2026-03-29T00:50Z', '2026-03-29T01:10Z'],
    policy: { keepHourly: 2 },
    removed: ['2026-03-29T00:10Z'],
  },
  {
    of: 'a day of 25 hours is one day, and the week around it one week',
    zone: 'Europe/Berlin',
    times: ['2026-10-18T22:00Z', '2026-10-24T22:00Z', '2026-10-25T22:59Z', '2026-10-25T23:00Z'],
    policy: { keepWeekly: 3 },
    removed: ['2026-10-18T22:00Z', '2026-10-24T22:00Z'],
  },
  {
    of: 'a day without a midnight belongs to its week',
    zone: 'America/Santiago',
    times: ['2026-08-31T05:00Z', '2026-09-06T04:00Z', '2026-09-06T20:00Z', '2026-09-07T12:00Z'],
    policy: { keepWeekly: 2 },
    removed: ['2026-08-31T05:00Z', '2026-09-06T04:00Z'],
  },
  {
    of: 'ISO week 53 spans two years',
    zone: 'UTC',
    times: [
      '2026-12-27T12:00Z',
      '2026-12-28T12:00Z',
      '2026-12-31T12:00Z',
      '2027-01-03T23:59Z',
      '2027-01-04T00:00Z',
    ],
    policy: { keepWeekly: 9 },
    removed: ['2026-12-28T12:00Z', '2026-12-31T12:00Z'],
  },
  {
    of: 'months end on their last day',
    zone: 'UTC',
    times: [
      '2028-02-28T23:59Z',
      '2028-02-29T23:59Z',
      '2028-03-01T00:00Z',
      '2028-03-31T23:59Z',
      '2028-04-30T12:00Z',
    ],
    policy: { keepMonthly: 3 },
    removed: ['2028-02-28T23:59Z', '2028-03-01T00:00Z'],
  },
  {
    of: 'the same month of another year is another month',
    zone: 'UTC',
    times: ['2025-05-01T00:00Z', '2026-05-01T00:00Z'],
    policy: { keepMonthly: 2 },
    removed: [],
  },
  {
    of: 'a checkpoint is kept if any rule keeps it',
    zone: 'UTC',
    times: ['2026-01-01T08:00Z', '2026-01-31T08:00Z', '2026-02-01T08:00Z', '2026-02-01T09:00Z'],
    policy: { keepLast: 1, keepDaily: 1, keepMonthly: 2 },
    removed: ['2026-01-01T08:00Z', '2026-02-01T08:00Z'],
  },
]

t.test('each calendar rule keeps the last checkpoint of its periods', async (t) => {
  for (const zone of new Set(cases.map((one) => one.zone))) {
    const ours = cases.filter((one) => one.zone === zone)
    const { stdout } = await runScript('choosing.mjs', [JSON.stringify(ours)], { TZ: zone })
    const removed = JSON.parse(stdout) as string[][]
    for (const [index, one] of ours.entries()) t.same(removed[index], one.removed, `${zone}: ${one.of}`)
  }
})

function listed(name: string, createdAt: Date, more: object = {}): ListedCheckpoint {
  const base = { vm: 'vm1', name, path: '/a.ckp', storedBytes: 100, pinned: false, poweredOff: false }
  return { ...base, createdAt, state: 'complete', problems: [], ...more } as unknown as ListedCheckpoint
}

const rules = ['keepLast', 'keepHourly', 'keepDaily', 'keepWeekly', 'keepMonthly'] as const

t.test('another keep rule, or a higher number, never removes more', async (t) => {
  const time = fc.date({ min: new Date('2025-12-01'), max: new Date('2027-02-01'), noInvalidDate: true })
  const times = fc.array(time, { maxLength: 40 })
  const policy = fc.record(Object.fromEntries(rules.map((rule) => [rule, fc.nat(12)])), {
    requiredKeys: [],
  }) as fc.Arbitrary<PrunePolicy>
  fc.assert(
    fc.property(times, policy, fc.constantFrom(...rules), fc.nat(12), (dates, before, rule, more) => {
      fc.pre(Object.keys(before).length > 0)
      const checkpoints = dates.map((date, index) => listed(`c${index}`, date))
      const after = { ...before, [rule]: (before[rule] ?? 0) + more }
      const removed = new Set(choose(checkpoints, before, Date.UTC(2028, 0)))
      for (const one of choose(checkpoints, after, Date.UTC(2028, 0))) if (!removed.has(one)) return false
      return checkpoints.length === 0 || removed.size < checkpoints.length
    }),
  )
  t.pass('the property holds')
})

t.test(
  'a calendar rule keeps as many checkpoints as there are periods, but at most its number',
  async (t) => {
    const day = 86_400_000
    fc.assert(
      fc.property(fc.array(fc.nat(60), { minLength: 1, maxLength: 60 }), fc.nat(20), (days, keepDaily) => {
        const checkpoints = days.map((one, index) =>
          listed(`c${index}`, new Date(new Date(2026, 5, 1, 12).getTime() + one * day + index)),
        )
        const kept = checkpoints.length - choose(checkpoints, { keepDaily }, Date.UTC(2028, 0)).length
        return kept === Math.max(1, Math.min(keepDaily, new Set(days).size))
      }),
    )
    t.pass('the property holds')
  },
)

t.test('a policy for a prefix or labels neither counts nor removes other checkpoints', async (t) => {
  const at = (minute: number): Date => new Date(2026, 0, 1, 0, minute)
  const nightly = { labels: { job: 'nightly', tier: 'gold' } }
  const checkpoints = [
    listed('auto-1', at(1), nightly),
    listed('auto-2', at(2), { labels: { job: 'nightly' } }),
    listed('hand', at(3), nightly),
    listed('auto-3', at(4)),
    listed('last', at(5)),
  ]
  const removed = (policy: PrunePolicy): string[] =>
    choose(checkpoints, policy, at(9).getTime()).map(({ name }) => name)
  t.same(removed({ keepLast: 1, namePrefix: 'auto-' }), ['auto-1', 'auto-2'])
  t.same(removed({ keepLast: 0, namePrefix: 'auto-' }), ['auto-1', 'auto-2', 'auto-3'])
  t.same(removed({ keepLast: 1, labels: { job: 'nightly' } }), ['auto-1', 'auto-2'])
  t.same(removed({ keepLast: 0, labels: { job: 'nightly', tier: 'gold' } }), ['auto-1', 'hand'])
  t.same(removed({ keepLast: 0, namePrefix: 'auto-', labels: { tier: 'gold' } }), ['auto-1'])
  t.same(removed({ keepLast: 0, namePrefix: 'last' }), [], 'never the last complete one of the VM')
  t.same(removed({ maxBytes: 200, namePrefix: 'auto-' }), ['auto-1'], 'only its bytes are counted')
})

t.test('prune: a policy may inherit its properties or compute them', async (t) => {
  const { client, put } = store(t)
  put('golden', 3000)
  put('auto-1', 2000)
  put('auto-2', 1000)
  class Nightly {
    readonly keepLast = 1
    readonly #prefixes = ['auto-']
    get namePrefix(): string {
      return this.#prefixes.join('')
    }
    get dryRun(): boolean {
      return this.namePrefix !== ''
    }
  }
  const inherited = Object.assign(Object.create({ namePrefix: 'auto-', dryRun: true }) as PrunePolicy, {
    keepLast: 1,
  })
  for (const policy of [new Nightly(), inherited]) {
    t.match(await client.pruneCheckpoints('vm1', policy), { removed: ['auto-1'], kept: ['golden', 'auto-2'] })
    t.match(await client.pruneAll(policy), [{ removed: ['auto-1'] }])
  }
  const names = (await client.listCheckpoints('vm1')).map(({ name }) => name)
  t.same(names, ['golden', 'auto-1', 'auto-2'], 'nothing was removed')
})

t.test('prune: rejects invalid calendar rules and scopes, and reads nothing', async (t) => {
  const { client, put } = store(t)
  put('a')
  for (const policy of [
    { keepHourly: 1.5 },
    { keepDaily: -1 },
    { keepWeekly: '1' },
    { keepMonthly: Infinity },
    { keepYearly: 1 },
    { namePrefix: 'a' },
    { keepLast: 0, namePrefix: '' },
    { keepLast: 0, namePrefix: 1 },
    { keepLast: 0, labels: {} },
    { keepLast: 0, labels: { job: 1 } },
    { keepLast: 0, labels: ['job'] },
  ]) {
    const error = await rejection(client.pruneCheckpoints('vm1', policy as object))
    t.match(error, { code: 'ERR_INVALID_OPTION', vm: 'vm1' }, JSON.stringify(policy))
    t.match(await rejection(client.pruneAll(policy as object)), { code: 'ERR_INVALID_OPTION' })
  }
})
