// `npm run test:matrix [-- --smoke]` runs the tests on every Node of the README's table, and checks which calls work on
// Bun and Deno. Runtimes are installed from npm into .cache/ once, without running their scripts. `--smoke` runs only
// the tests of the protocol. Linux x64, Linux arm64, macOS.
import { spawn, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const cache = path.join(root, '.cache')
const isSmoke = process.argv.includes('--smoke')
const platform = `${process.platform}-${process.arch}`
const nodes = ['20', '22', '24', '26']

const stored = ['stored VMs', 'list', 'verify', 'verify content', 'suspended state', 'plan', 'pin', 'destroy']
const all = [...stored, 'machines', 'pause and resume', 'create', 'suspend', 'restore']
const unsupported = 'ERR_RUNTIME_UNSUPPORTED'
/** As in the README. If a runtime does more or less than this, the README's table is out of date. */
const others = [
  {
    runtime: 'bun',
    install: `@oven/bun-${process.platform}-${process.arch === 'arm64' ? 'aarch64' : 'x64'}`,
    find: (directory, name) => path.join(directory, name, 'bin/bun'),
    args: [],
    fails: { create: unsupported, suspend: unsupported },
  },
  {
    runtime: 'deno',
    install: 'deno',
    find: (directory) => {
      const scoped = path.join(directory, '@deno')
      return path.join(scoped, fs.readdirSync(scoped)[0], 'deno')
    },
    args: ['run', '-A'],
    fails: {
      'verify content': unsupported,
      pin: unsupported,
      create: unsupported,
      suspend: unsupported,
      restore: unsupported,
    },
  },
]

let failures = 0

await prepare()
for (const version of nodes) runSuite(version)
for (const other of others) await smoke(other)
console.log(failures === 0 ? 'matrix: all results match the table' : `matrix: ${failures} failed`)
process.exit(failures === 0 ? 0 : 1)

function runSuite(version) {
  const directory = install(`node${version}`, `node@npm:node-${platform}@${version}`)
  const node = path.join(directory, 'node/bin/node')
  const files = isSmoke ? ['test/bhyve/wire.test.ts'] : []
  const { status, stdout, stderr } = spawnSync(
    node,
    [path.join(root, 'node_modules/.bin/tap'), '--reporter=tap', ...files],
    // Child processes that are started by name must be the same Node.
    {
      cwd: root,
      encoding: 'utf8',
      maxBuffer: 2 ** 30,
      env: { ...process.env, PATH: `${path.dirname(node)}:${process.env.PATH}` },
    },
  )
  const { stdout: exact } = spawnSync(node, ['--version'], { encoding: 'utf8' })
  const total = /^# \{ total.*$/m.exec(stdout)?.[0] ?? '(no result)'
  report(`Node ${exact.trim()} ${total}`, status === 0, status === 0 ? '' : failedIn(stdout) + stderr)
}

function failedIn(stdout) {
  return stdout
    .split('\n')
    .flatMap((line, index, lines) => (/^ *not ok/.test(line) ? lines.slice(index, index + 30) : []))
    .join('\n')
}

/** Node makes a store with two checkpoints of a running VM and one suspended state. Then the runtime works on it. */
async function smoke({ runtime, install: name, find, args, fails }) {
  const executable = find(install(runtime, name), name)
  const { createClient } = await import('bhyve-checkpoint')
  const { SimulatedBhyve } = await import('bhyve-checkpoint/simulator')
  const store = fs.mkdtempSync(path.join(os.tmpdir(), 'bc-runtime-'))
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 1024 * 1024 })
  try {
    const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: store })
    for (const one of ['one', 'two']) await client.createCheckpoint('vm1', { name: one })
    const { runDirectory } = bhyve
    const off = await SimulatedBhyve.start({ vm: 'vm2', memoryBytes: 1024 * 1024, runDirectory })
    await client.suspend('vm2')
    await off.stop()
    const script = path.join(root, 'test/support/runtime.mjs')
    const output = await outputOf(executable, [...args, script, bhyve.runDirectory, store])
    for (const what of all) {
      const outcome = new RegExp(`^${what}: (.*)$`, 'm').exec(output)?.[1] ?? 'nothing'
      const expected = fails[what] ?? 'works'
      report(`${runtime}: ${what}: ${outcome}`, outcome === expected, `expected: ${expected}\n${output}`)
    }
  } finally {
    await bhyve.stop()
    fs.rmSync(store, { recursive: true, force: true })
  }
}

function outputOf(executable, args) {
  return new Promise((resolve) => {
    const child = spawn(executable, args, { cwd: root, timeout: 60_000, killSignal: 'SIGKILL' })
    let output = ''
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += chunk))
    child.on('close', () => resolve(output))
  })
}

function install(name, what) {
  const directory = path.join(cache, name)
  const modules = path.join(directory, 'node_modules')
  if (!fs.existsSync(modules)) {
    console.log(`installing ${what} ...`)
    fs.mkdirSync(directory, { recursive: true })
    const args = ['install', '--prefix', directory, '--ignore-scripts', '--no-audit', '--no-fund', what]
    const { status, stderr } = spawnSync('npm', args, { encoding: 'utf8' })
    if (status !== 0) {
      console.error(stderr)
      process.exit(1)
    }
  }
  return modules
}

function report(what, isGood, details) {
  console.log(`${isGood ? 'ok' : 'FAILED'}: ${what}`)
  if (isGood) return
  failures++
  console.error(details)
}

async function prepare() {
  const { status } = spawnSync(process.execPath, [path.join(root, 'scripts/prepare.mjs')], {
    stdio: 'inherit',
  })
  if (status !== 0) process.exit(1)
}
