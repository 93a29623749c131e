/** The tests, and which mutants each of them reaches. */
import fs from 'node:fs'
import path from 'node:path'

/** These tests do not run the changed code, or take too long for what they detect. */
const without =
  /^(docs|types|simulator\/.*|cli\/.*|deep\/(cbsd_commands|examples|package|stand_in\w*|cli\w*|teardown))\.test\.ts$/

export function testsOf(root) {
  const files = fs
    .readdirSync(path.join(root, 'test'), { recursive: true })
    .filter((file) => file.endsWith('.test.ts') && !without.test(file))
    .map((file) => `test/${file}`)
  const tap = ['--bail', '--jobs=1', '--reporter=tap', '--timeout=900']
  const ofTap = files.map((file) => ({
    name: path.basename(file, '.test.ts'),
    command: 'node_modules/.bin/tap',
    args: [...tap, file],
  }))
  const power = {
    name: 'power',
    command: 'node',
    args: ['test/power/run.mjs', '--seed', '1', '--count', '300'],
  }
  return [...ofTap, power]
}

/** Runs each test once without a mutant. A test that fails then cannot detect mutants. */
export async function reachOf(lanes, tests, file) {
  if (fs.existsSync(file)) return JSON.parse(fs.readFileSync(file, 'utf8'))
  const waiting = [...tests]
  const found = []
  const work = async (lane) => {
    for (let test = waiting.shift(); test !== undefined; test = waiting.shift()) {
      found.push(await reached(lane, test))
    }
  }
  await Promise.all(lanes.map(work))
  fs.writeFileSync(file, JSON.stringify(found))
  return found
}

async function reached(lane, test) {
  const list = path.join(lane.root, '..', 'reached')
  fs.writeFileSync(list, '', { mode: 0o666 })
  fs.chmodSync(list, 0o666)
  const start = performance.now()
  const passed = (await lane.passes(test, { seconds: 1200, env: { MUTANTS_REACHED: list } })) === true
  const seconds = (performance.now() - start) / 1000
  const ids = [...new Set(fs.readFileSync(list, 'utf8').split('\n'))].filter(Boolean).map(Number)
  console.log(
    `${test.name}: ${passed ? 'passes' : 'FAILS without a mutant'}, ${seconds.toFixed(0)} s, ${ids.length} mutants`,
  )
  return { ...test, passed, seconds, ids }
}
