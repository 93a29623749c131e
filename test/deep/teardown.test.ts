/**
 * Programs that use the library end normally in the middle of any call: with status 0 and no signal, or with the status
 * or signal that they chose. Each program is a process of its own.
 */
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedFleet, type SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { checkpointFiles, type Ended, runScript, scratch } from '../support/index.js'
import { terminateWorkers } from '../support/workers.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const KiB = 1024

interface Program {
  operation: 'create' | 'list' | 'destroy'
  phase: string
  ending: 'finish' | 'throw' | 'exit' | 'sigterm' | 'terminate'
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

class Host {
  readonly store: string
  readonly #fleet: SimulatedFleet
  readonly #vms: readonly string[]

  private constructor(t: Test, fleet: SimulatedFleet, vms: readonly string[]) {
    this.store = scratch(t)
    this.#fleet = fleet
    this.#vms = vms
  }

  static async start(
    t: Test,
    vms: readonly string[],
    options: Partial<SimulatorOptions> = {},
  ): Promise<Host> {
    const fleet = await SimulatedFleet.start({
      vms,
      memoryBytes: 512 * KiB,
      writeRate: 2048 * KiB,
      ...options,
    })
    t.teardown(() => fleet.stop())
    return new Host(t, fleet, vms)
  }

  get client() {
    const { runDirectory } = this.#fleet
    return createClient({ runDirectory, checkpointDirectory: this.store, dialect: 'descriptor' })
  }

  /** Creates an old checkpoint of every VM, which must survive every ending. */
  async fill(): Promise<void> {
    await Promise.all(this.#vms.map((vm) => this.client.createCheckpoint(vm, { name: 'old' })))
  }

  run(program: Program): Promise<Ended> {
    const { runDirectory } = this.#fleet
    const settings = { ...program, runDirectory, checkpointDirectory: this.store, vm: 'vm' }
    return runScript('teardown.mjs', [JSON.stringify(settings)])
  }

  /** Ends the VMs, so that outstanding requests fail. */
  endVms(): Promise<void> {
    return this.#fleet.stop()
  }

  /** All checkpoints are complete, each VM accepts another request, and no other files are left afterwards. */
  async isSound(t: Test, what: string, mayBeGone = false): Promise<void> {
    const { client } = this
    for (const vm of this.#vms) {
      const listed = await client.listCheckpoints(vm)
      if (listed.some(({ state }) => state !== 'complete')) t.fail(`${what}: ${JSON.stringify(listed)}`)
      if (!mayBeGone && !listed.some(({ name }) => name === 'old'))
        t.fail(`${what}: the old checkpoint is gone`)
    }
    // bhyve handles this request after those of the program. The call also removes abandoned stages.
    await Promise.all(this.#vms.map((vm) => client.createCheckpoint(vm, { name: 'after' })))
    const left = this.#vms.flatMap((vm) => checkpointFiles(path.join(this.store, vm)))
    t.strictSame(
      left.filter((file) => !/^(old|new|after)\.ckp(\.kern|\.meta|\.manifest)?$/.test(file)),
      [],
      `${what}: no other files are left`,
    )
  }
}

/** Runs a few at a time, because each is a process. */
async function each<T>(values: readonly T[], work: (value: T) => Promise<void>): Promise<void> {
  const waiting = [...values]
  const next = async (): Promise<void> => {
    for (let value = waiting.shift(); value !== undefined; value = waiting.shift()) await work(value)
  }
  await Promise.all([next(), next(), next()])
}

const ends = ['finish', 'throw', 'exit', 'sigterm'] as const

t.test('teardown: a program can end in every phase of a checkpoint', async (t) => {
  const cases = ['queued', 'saving', 'checking', 'syncing', 'publishing'].flatMap((phase) =>
    ends.map((ending) => ({ phase, ending })),
  )
  await each(cases, async ({ phase, ending }) => {
    const host = await Host.start(t, ['vm'])
    await host.fill()
    const ended = await host.run({ operation: 'create', phase, ending })
    const what = `${phase}, ${ending}`
    t.match(ended, expected[ending], what)
    t.equal(ended.stdout, ending === 'finish' ? 'ending\nfulfilled\n' : 'ending\n', what)
    await host.isSound(t, what)
  })
})

t.test('teardown: a program can end while bhyve hangs', async (t) => {
  const cases = (['memory', 'kernel', 'metadata'] as const).flatMap((at) =>
    (['throw', 'exit', 'sigterm'] as const).map((ending) => ({ at, ending })),
  )
  await each(cases, async ({ at, ending }) => {
    const host = await Host.start(t, ['vm'], { fault: { at, kind: 'hang' } })
    const ended = await host.run({ operation: 'create', phase: 'saving', ending })
    t.match(ended, { ...expected[ending], stdout: 'ending\n' }, `${at}, ${ending}`)
    t.strictSame(await host.client.listCheckpoints('vm'), [], `${at}, ${ending}`)
  })
})

t.test('teardown: a program can end while it lists or destroys checkpoints', async (t) => {
  const cases = (['list', 'destroy'] as const).flatMap((operation) =>
    ['begun', 'done'].flatMap((phase) => ends.map((ending) => ({ operation, phase, ending }))),
  )
  await each(cases, async (program) => {
    const host = await Host.start(t, ['vm'])
    await host.fill()
    const what = `${program.operation}, ${program.phase}, ${program.ending}`
    const ended = await host.run(program)
    t.match(ended, expected[program.ending], what)
    t.match(ended.stdout, program.ending === 'finish' ? 'fulfilled\n' : 'ending\n', what)
    await host.isSound(t, what, program.operation === 'destroy')
  })
})

t.test('teardown: a program with two clients can end', async (t) => {
  await each(ends, async (ending) => {
    const host = await Host.start(t, ['vm1', 'vm2'])
    await host.fill()
    const ended = await host.run({ operation: 'create', phase: 'saving', ending, copies: 2 })
    t.match(ended, expected[ending], ending)
    if (ending === 'finish') t.equal(ended.stdout, 'ending\nfulfilled fulfilled\n')
    await host.isSound(t, ending)
  })
})

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
  const libraries = [root, secondLoad(t)]
  await each(ends, async (ending) => {
    const host = await Host.start(t, ['vm1', 'vm2'])
    await host.fill()
    const ended = await host.run({ operation: 'create', phase: 'checking', ending, copies: 2, libraries })
    t.match(ended, expected[ending], ending)
    if (ending === 'finish') t.equal(ended.stdout, 'ending\nfulfilled fulfilled\n')
    await host.isSound(t, ending)
  })
})

t.test('teardown: a process can end while fifty Workers create checkpoints', async (t) => {
  const cases = [
    { ending: 'terminate', workers: 50 },
    { ending: 'exit', workers: 50 },
    { ending: 'throw', workers: 10 },
    { ending: 'sigterm', workers: 10 },
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
  for (const phase of ['queued', 'saving', 'checking', 'syncing', 'publishing'])
    await terminateWorkers(t, phase, 8)
})
