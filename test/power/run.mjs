// Checks what a power failure can leave: `npm run test:power -- --seed 1 --count 2000` records each operation as a
// trace of system calls (record.mjs, history.mjs), computes what a disk may show if the power fails at any step
// (disks.mjs, states.mjs), inspects these states with the public API (judge.mjs), and reports broken rules (rules.mjs).
//
// --count N      checks N random states, besides the extreme states of each step
// --again N      also records the recovery from N states, and checks a second power failure during it
// --without      leaves out one fsync at a time and shows which of them are needed
// --traces DIR   uses the recordings in DIR, adds missing ones, and keeps them
// --replay ID    judges one state; with --drop N, without the fsync at step N
// --steps        shows the steps of the recordings
// --all          also variants of the operations with disks
// --operation NAME, --model NAME: only these; may be repeated
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { recordAgain } from './again.mjs'
import { Checker, describeState } from './checker.mjs'
import { modelNames } from './disks.mjs'
import { Findings } from './findings.mjs'
import { Judge } from './judge.mjs'
import { operations, usualNames } from './operations.mjs'
import { recordAll } from './record.mjs'
import { extremesAt, randomStates } from './states.mjs'
import { showWithout } from './without.mjs'

const text = { type: 'string' }
const { values } = parseArgs({
  options: {
    seed: { ...text, default: '1' },
    count: { ...text, default: '2000' },
    again: { ...text, default: '0' },
    ...{ operation: { ...text, multiple: true }, model: { ...text, multiple: true } },
    ...{
      traces: text,
      replay: text,
      drop: text,
      without: { type: 'boolean' },
      steps: { type: 'boolean' },
      all: { type: 'boolean' },
    },
  },
})
const lanes = 3
const scratch = fs.mkdtempSync(
  path.join(fs.existsSync('/dev/shm') ? '/dev/shm' : os.tmpdir(), 'bhyve-power-'),
)
const traces = path.resolve(values.traces ?? path.join(scratch, 'traces'))
const judge = new Judge(scratch)
const checker = new Checker(traces, judge)
const models = values.model ?? modelNames
const diskFor = (operation, model) => checker.disk(operation, model)

function* extremes(names) {
  for (const operation of names) {
    for (const model of models) {
      const disk = checker.disk(operation, model)
      for (let cut = 0; cut <= disk.history.steps.length; cut++) yield* extremesAt(disk, operation, cut)
    }
  }
}

async function checkAll(states, findings) {
  const lane = async () => {
    for (const state of states) findings.add(state, await checker.check(state))
  }
  await Promise.all(Array.from({ length: lanes }, lane))
}

async function checkRecorded(names) {
  const findings = new Findings()
  const started = performance.now()
  await checkAll(extremes(names), findings)
  await checkAll(randomStates(Number(values.seed), Number(values.count), names, models, diskFor), findings)
  const seconds = (performance.now() - started) / 1000
  await findings.report(checker, traces)
  console.log(`\n${findings.summary(judge.distinct)}`)
  console.log(`${seconds.toFixed(0)} seconds, ${(findings.judged / seconds).toFixed(0)} states a second`)
  return findings.violations
}

async function replay(id) {
  const dropped = values.drop === undefined ? undefined : Number(values.drop)
  const state = checker.parse(id, dropped)
  const disk = checker.disk(state.operation, state.model, dropped)
  const broken = await checker.check(state, disk)
  console.log(describeState(state, disk))
  for (const { path: file, isDirectory, data, id: inode } of checker.tree(state, disk))
    console.log(`    ${file}${isDirectory ? '/' : ` (${data.length} bytes, file ${inode})`}`)
  for (const { rule, why } of broken) console.log(`${rule}: ${why}`)
  if (broken.length === 0) console.log('no rule is broken')
  return broken.length
}

function showSteps(names) {
  for (const name of names) {
    console.log(name)
    checker.recorded(name).history.steps.forEach(({ label, mark }, at) => {
      console.log(`  ${at}: ${label ?? JSON.stringify(mark)}`)
    })
  }
  return 0
}

async function main() {
  if (values.replay !== undefined) return replay(values.replay)
  const names = values.operation ?? (values.all ? Object.keys(operations) : usualNames)
  await recordAll(traces, names, console.log)
  if (values.steps) return showSteps(names)
  if (values.without) return showWithout(checker, names, models)
  const [seed, count] = [Number(values.seed), Number(values.again)]
  const more = { checker, directory: traces, seed, count, operations: names, models, log: console.log }
  return checkRecorded([...names, ...(await recordAgain(more))])
}

let isKept = false
try {
  const violations = await main()
  // Keep the recordings, so that the violation can be replayed.
  isKept = violations > 0 && values.traces === undefined
  process.exitCode = violations === 0 ? 0 : 1
} finally {
  if (!isKept) fs.rmSync(scratch, { recursive: true, force: true })
}
