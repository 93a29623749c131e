/**
 * Programs that use the library end normally in the middle of any call: with status 0 and no signal, or with the status
 * or signal that they chose. Each program is a process of its own.
 */
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { type FleetOptions, SimulatedFleet } from 'bhyve-checkpoint/simulator'
import { checkpointFiles, type Ended, runScript, scratch } from '../support/index.js'
import { terminateWorkers } from '../support/workers.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const KiB = 1024

interface Program {
  operation: 'create' | 'list' | 'destroy'
  phase: string
  ending: 'finish' | 'throw' | 'exit' | 'sigterm' | 'terminate'
  vm?: string
  copies?: number
  workers?: number
  libraries?: string[]
}

/** The exit of a program for each way to end it. */
const expected = {
  finish: { code: 0, signal: null, stderr: '' },
  throw: { code: 1, signal: null, stderr: 'Error: on purpose' },
  exit: { code: 3, signal: null, stderr: '' },
  sigterm: { code: null, signal: 'SIGTERM', stderr: '' },
  terminate: { code: 0, signal: null, stderr: '' },
}

/** VMs that share a process. Each program uses VMs of its own. */
class Host {
  readonly store: string
  readonly #fleet: SimulatedFleet

  private constructor(t: Test, fleet: SimulatedFleet) {
    this.store = scratch(t)
    this.#fleet = fleet
  }

  static async start(t: Test, vms: FleetOptions['vms'], options: Partial<FleetOptions> = {}): Promise<Host> {
    const fleet = await SimulatedFleet.start({
      vms,
      memoryBytes: 512 * KiB,
      writeRate: 2048 * KiB,
      ...options,
    })
    t.teardown(() => fleet.stop())
    return new Host(t, fleet)
  }

  get client() {
    const { runDirectory } = this.#fleet
    return createClient({ runDirectory, checkpointDirectory: this.store, dialect: 'descriptor' })
  }

  /** Creates an old checkpoint of every VM, which must survive every ending. */
  async fill(): Promise<void> {
    await Promise.all(this.#fleet.vms.map((vm) => this.client.createCheckpoint(vm, { name: 'old' })))
  }

  run(program: Program): Promise<Ended> {
    const { runDirectory } = this.#fleet
    const settings = { vm: 'vm', ...program, runDirectory, checkpointDirectory: this.store }
    return runScript('teardown.mjs', [JSON.stringify(settings)])
  }

  /** Ends the VMs, so that outstanding requests fail. */
  endVms(): Promise<void> {
    return this.#fleet.stop()
  }

  /** All checkpoints are complete, each VM accepts another request, and no other files are left afterwards. */
  async isSound(t: Test, vms: readonly string[], what: string, mayBeGone = false): Promise<void> {
    const { client } = this
    for (const vm of vms) {
      const listed = await client.listCheckpoints(vm)
      if (listed.some(({ state }) => state !== 'complete')) t.fail(`${what}: ${JSON.stringify(listed)}`)
      if (!mayBeGone && !listed.some(({ name }) => name === 'old'))
        t.fail(`${what}: the old checkpoint is gone`)
    }
    // bhyve handles this request after those of the program. The call also removes abandoned stages.
    await Promise.all(vms.map((vm) => client.createCheckpoint(vm, { name: 'after' })))
    const left = vms.flatMap((vm) => checkpointFiles(path.join(this.store, vm)))
    t.strictSame(
      left.filter((file) => !/^(old|new|after)\.ckp(\.kern|\.meta|\.manifest)?$/.test(file)),
      [],
      `${what}: no other files are left`,
    )
  }
}

/** Runs a few at a time, because each is a process. */
async function each<T>(values: readonly T[], work: (value: T, vm: string) => Promise<void>): Promise<void> {
  const waiting = values.map((value, index) => ({ value, vm: `vm-${String(index)}-` }))
  const next = async (): Promise<void> => {
    for (let one = waiting.shift(); one !== undefined; one = waiting.shift()) await work(one.value, one.vm)
  }
  await Promise.all([next(), next(), next()])
}

/** The names of the VMs that `each` passes for this many values. With `copies`, each program has several VMs. */
function vmsFor(count: number, copies = 1): string[] {
  return Array.from({ length: count }, (_, index) => vmsOf(`vm-${String(index)}-`, copies)).flat()
}

/** The VMs of one program, as test/support/teardown.mjs names them. */
function vmsOf(vm: string, copies: number): string[] {
  return copies === 1 ? [vm] : Array.from({ length: copies }, (_, copy) => `${vm}${String(copy + 1)}`)
}

const ends = ['finish', 'throw', 'exit', 'sigterm'] as const

t.test('teardown: a program can end in every phase of a checkpoint', async (t) => {
  const phases = ['queued', 'saving', 'checking', 'syncing', 'publishing']
  const cases = [
    ...phases.flatMap((phase) => (['throw', 'exit'] as const).map((ending) => ({ phase, ending }))),
    // No code of the program runs after this signal. The tests of kills cover its other moments.
    ...['saving', 'publishing'].map((phase) => ({ phase, ending: 'sigterm' as const })),
    { phase: 'saving', ending: 'finish' as const },
  ]
  const host = await Host.start(t, vmsFor(cases.length))
  await host.fill()
  await each(cases, async ({ phase, ending }, vm) => {
    const ended = await host.run({ operation: 'create', phase, ending, vm })
    const what = `${phase}, ${ending}`
    t.match(ended, expected[ending], what)
    t.equal(ended.stdout, ending === 'finish' ? 'ending\nfulfilled\n' : 'ending\n', what)
    await host.isSound(t, [vm], what)
  })
})

t.test('teardown: a program can end while bhyve hangs', async (t) => {
  const cases = [
    { at: 'memory', ending: 'throw' },
    { at: 'memory', ending: 'exit' },
    { at: 'memory', ending: 'sigterm' },
    { at: 'kernel', ending: 'exit' },
    { at: 'metadata', ending: 'exit' },
  ] as const
  const vms = vmsFor(cases.length).map((vm, index) => ({
    vm,
    fault: { at: cases[index]!.at, kind: 'hang' as const },
  }))
  const host = await Host.start(t, vms)
  await each(cases, async ({ at, ending }, vm) => {
    const ended = await host.run({ operation: 'create', phase: 'saving', ending, vm })
    t.match(ended, { ...expected[ending], stdout: 'ending\n' }, `${at}, ${ending}`)
    t.strictSame(await host.client.listCheckpoints(vm), [], `${at}, ${ending}`)
  })
})

t.test('teardown: a program can end while it lists or destroys checkpoints', async (t) => {
  const cases = (['list', 'destroy'] as const).flatMap((operation) => [
    ...ends.map((ending) => ({ operation, phase: 'begun', ending })),
    { operation, phase: 'done', ending: 'exit' as const },
  ])
  const host = await Host.start(t, vmsFor(cases.length))
  await host.fill()
  await each(cases, async (program, vm) => {
    const what = `${program.operation}, ${program.phase}, ${program.ending}`
    const ended = await host.run({ ...program, vm })
    t.match(ended, expected[program.ending], what)
    t.match(ended.stdout, program.ending === 'finish' ? 'fulfilled\n' : 'ending\n', what)
    await host.isSound(t, [vm], what, program.operation === 'destroy')
  })
})

t.test('teardown: a program with two clients can end', async (t) => {
  await endWithTwo(t, { operation: 'create', phase: 'saving' })
})

/** Ends programs in each way while they create checkpoints of two VMs. */
async function endWithTwo(t: Test, program: Omit<Program, 'ending'>): Promise<void> {
  const host = await Host.start(t, vmsFor(ends.length, 2))
  await host.fill()
  await each(ends, async (ending, vm) => {
    const ended = await host.run({ ...program, ending, vm, copies: 2 })
    t.match(ended, expected[ending], ending)
    if (ending === 'finish') t.equal(ended.stdout, 'ending\nfulfilled fulfilled\n')
    await host.isSound(t, vmsOf(vm, 2), ending)
  })
}

/** A copy of the library. Its addon has another path, so the system's loader loads it a second time. */
function secondLoad(t: Test): string {
  const directory = scratch(t)
  const addon = path.join(process.env.BHYVE_CHECKPOINT_PREBUILD ?? root, 'build/Release')
  for (const [from, to] of [
    [path.join(root, 'dist'), 'dist'],
    [path.join(root, 'package.json'), 'package.json'],
    [path.join(root, 'node_modules/node-gyp-build'), 'node_modules/node-gyp-build'],
    [addon, 'build/Release'],
  ] as const) {
    fs.cpSync(from, path.join(directory, to), { recursive: true, filter: (file) => !file.endsWith('.d') })
  }
  return directory
}

t.test('teardown: a process that has loaded the addon twice can end', async (t) => {
  await endWithTwo(t, { operation: 'create', phase: 'checking', libraries: [root, secondLoad(t)] })
})

t.test('teardown: a process can end while many Workers create checkpoints', async (t) => {
  const cases = [
    { ending: 'terminate', workers: 24 },
    { ending: 'exit', workers: 12 },
    { ending: 'throw', workers: 4 },
    { ending: 'sigterm', workers: 4 },
  ] as const
  for (const { ending, workers } of cases) {
    const vms = Array.from({ length: workers }, (_, index) => `vm${index + 1}`)
    // The first Worker must still be in this phase when the last one reaches it.
    const host = await Host.start(t, vms, { memoryBytes: 64 * KiB, fault: { at: 'memory', kind: 'hang' } })
    const ended = await host.run({ operation: 'create', phase: 'saving', ending, workers })
    t.match(ended, expected[ending], ending)
    t.equal(ended.stdout, ending === 'terminate' ? 'ending\nterminated\n' : 'ending\n', ending)
    for (const vm of vms)
      t.strictSame(await host.client.destroyAll(vm), [], `${ending}: nothing was published`)
    // The stage of a bhyve that may still write is kept.
    await host.endVms()
    for (const vm of vms) t.strictSame(await host.client.listCheckpoints(vm), [], ending)
    const left = vms.flatMap((vm) => checkpointFiles(path.join(host.store, vm)))
    t.strictSame(left, [], `${ending}: the stages are removed`)
  }
})

t.test('teardown: Workers that are terminated in any phase leave no files', async (t) => {
  await terminateWorkers(t, ['queued', 'saving', 'checking', 'syncing', 'publishing'], 4)
})
