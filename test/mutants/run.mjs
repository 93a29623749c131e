// `npm run test:mutants` changes the code that protects a VM, one change at a time, and checks that a test fails. Takes
// hours for many mutants. Needs root on Linux, and `npm install --no-save @stryker-mutator/instrumenter@9`.
//
// --seed N --count N   a random sample of the mutants (200)
// --listed             the changes of listed.mjs instead, native code included
// --room TEXT          only files with this in their path; may be repeated
// --again KEY          only this mutant; may be repeated
// --within SECONDS     the time for the tests of one mutant (150); tests that detected mutants of its file run first
// --lanes N            how many mutants at a time (2)
// --work DIR           keeps the copies and what was measured about the tests in DIR, and uses them again
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { generator } from '../support/random.mjs'
import { equivalents } from './equivalent.mjs'
import { instrument } from './instrument.mjs'
import { Lane } from './lane.mjs'
import { apply, listed } from './listed.mjs'
import { reachOf, testsOf } from './tests.mjs'

const text = { type: 'string' }
const { values } = parseArgs({
  options: {
    ...{ seed: { ...text, default: '1' }, count: { ...text, default: '200' } },
    ...{ within: { ...text, default: '150' }, lanes: { ...text, default: '2' }, work: text },
    ...{ room: { ...text, multiple: true }, again: { ...text, multiple: true }, listed: { type: 'boolean' } },
  },
})
const root = fileURLToPath(new URL('../..', import.meta.url))
const work = path.resolve(values.work ?? fs.mkdtempSync(path.join(os.tmpdir(), 'm')))
// Some tests run as another user.
fs.mkdirSync(work, { recursive: true })
fs.chmodSync(work, 0o755)
const scope = [
  /^lib\/(store|fs|bhyve)\//,
  /^lib\/operations\/(create|suspend|saving\/\w+|restore\/(restore|start|running))\.ts$/,
  /^lib\/checkpoint\/(structure|manifest|manifest_file|slice|digest|unrestored)\.ts$/,
  /^lib\/(base\/cancellation|client\/vm_queue)\.ts$/,
]

function filesInScope() {
  const all = fs.readdirSync(path.join(root, 'lib'), { recursive: true }).map((name) => `lib/${name}`)
  return all.filter((name) => name.endsWith('.ts') && scope.some((pattern) => pattern.test(name))).sort()
}

/** The same order for the same seed. */
function shuffled(items, seed) {
  const next = generator(seed)
  return items
    .map((item) => ({ item, at: next() }))
    .sort((one, other) => one.at - other.at)
    .map(({ item }) => item)
}

/** The mutants with the given keys, or a sample. `--room` filters the mutants before they are shuffled. */
function chosen(mutants) {
  const known = mutants.filter(({ file }) => values.room?.some((room) => file.includes(room)) ?? true)
  if (values.again !== undefined) return known.filter(({ key, id }) => values.again.includes(key ?? id))
  return shuffled(known, Number(values.seed)).slice(0, Number(values.count))
}

/** Counts the mutants of a file that each test detected. Tests with the best ratio of mutants to seconds run first. */
class Experience {
  #kills = new Map()

  add(file, test) {
    const key = `${file} ${test}`
    this.#kills.set(key, (this.#kills.get(key) ?? 0) + 1)
  }

  order(file, tests) {
    const worth = ({ name, seconds }) => ((this.#kills.get(`${file} ${name}`) ?? 0) + 0.2) / (seconds + 2)
    return [...tests].sort((one, other) => worth(other) - worth(one))
  }
}

const experience = new Experience()

/** The name of the test that fails, with `(time)` if it does not end. Undefined if all tests that ran pass. */
async function killerOf(lane, mutant, tests, { within, env }) {
  let spent = 0
  for (const test of experience.order(mutant.file, tests)) {
    if (spent + test.seconds > within) continue
    spent += test.seconds
    const passed = await lane.passes(test, { seconds: 2 * test.seconds + 30, env })
    if (passed === true) continue
    experience.add(mutant.file, test.name)
    return passed === undefined ? `${test.name} (time)` : test.name
  }
  return undefined
}

const results = path.join(work, 'results.jsonl')
function keep(mutant, killer) {
  const why = equivalents.find(({ key }) => key === mutant.key)?.why
  const verdict = killer !== undefined ? 'killed' : why !== undefined ? 'equivalent' : 'SURVIVED'
  fs.appendFileSync(results, `${JSON.stringify({ ...mutant, verdict, killer, why })}\n`)
  const change = `${mutant.from.slice(0, 90)} -> ${mutant.to.slice(0, 60)}`.replace(/\s+/g, ' ')
  const where = mutant.line === undefined ? mutant.file : `${mutant.file}:${mutant.line}`
  const by = killer === undefined ? '' : ` [${killer}]`
  console.log(`${verdict.padEnd(10)} ${mutant.key} ${where} ${change}${by}`)
  return verdict
}

async function inLanes(lanes, items, judge) {
  const counts = {}
  const waiting = [...items]
  const work = async (lane) => {
    for (let item = waiting.shift(); item !== undefined; item = waiting.shift()) {
      const verdict = keep(item, await judge(lane, item))
      counts[verdict] = (counts[verdict] ?? 0) + 1
    }
  }
  await Promise.all(lanes.map(work))
  return counts
}

const lanes = Array.from(
  { length: Number(values.lanes) },
  (_, index) => new Lane(root, path.join(work, String(index))),
)
fs.rmSync(results, { force: true })
let counts
if (values.listed) {
  const changes = chosen(listed)
  const used = new Set(changes.flatMap(({ tests }) => tests))
  const tests = testsOf(root).filter(({ name }) => used.has(name))
  const known = await reachOf(lanes, tests, path.join(work, 'unchanged.json'))
  counts = await inLanes(lanes, changes, async (lane, change) => {
    const undo = apply(lane.root, change)
    try {
      const its = known.filter(({ passed, name }) => passed && change.tests.includes(name))
      return await killerOf(lane, change, its, { within: Infinity })
    } finally {
      undo()
    }
  })
} else {
  let mutants
  for (const lane of lanes) mutants = await instrument(lane.root, filesInScope())
  const reach = await reachOf(lanes, testsOf(root), path.join(work, 'reach.json'))
  console.log(`${mutants.length} mutants`)
  counts = await inLanes(lanes, chosen(mutants), (lane, mutant) => {
    const tests = reach.filter(({ passed, ids }) => passed && ids.includes(Number(mutant.id)))
    const env = { __STRYKER_ACTIVE_MUTANT__: mutant.id }
    return killerOf(lane, mutant, tests, { within: Number(values.within), env })
  })
}
const { killed = 0, SURVIVED: survived = 0, equivalent = 0 } = counts
console.log(
  `${killed} killed, ${survived} survived, ${equivalent} equivalent: ${((100 * killed) / (killed + survived)).toFixed(1)} %`,
)
process.exitCode = survived === 0 ? 0 : 1
