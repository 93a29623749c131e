/**
 * A process with few descriptors: the library counts descriptors, calls wait for each other, and errors name the limit.
 */
import { execFile } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { CheckpointError, type CheckpointClient } from 'bhyve-checkpoint'
import { SimulatedBhyve, simulatedBhyve, SimulatedFleet } from 'bhyve-checkpoint/simulator'
import { PeerMemory } from '../../dist/bhyve/peer_memory.js'
import { Cancellation } from '../../dist/base/cancellation.js'
import { createClientIn } from '../../dist/client/client.js'
import { DescriptorBudget } from '../../dist/client/descriptor_budget.js'
import { loadNative } from '../../dist/base/native.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import {
  childEnvironment,
  failure,
  inlinePool,
  intercept,
  rejection,
  scratch,
  until,
} from '../support/index.js'

const native = loadNative()

t.test('the addon reports the limit and the number of open descriptors', async (t) => {
  const before = native.openDescriptors() as number
  t.ok(before > 2, `${before} open`)
  t.ok((native.descriptorLimit() as number) > before)
  const one = fs.openSync('/dev/null', 'r')
  t.equal(native.openDescriptors(), before + 1)
  fs.closeSync(one)
  t.equal(native.openDescriptors(), before)
})

/** Native calls that need a descriptor, at least while they run. */
const opening = [
  'openPath',
  'openAt',
  'readStartAt',
  'readDirectory',
  'connectStream',
  'processStatus',
  'processArguments',
  'watchProcess',
  'signalProcess',
] as const

/** Lets the call with number `at` fail. */
class Exhaustion {
  at = 0
  count = 0
  struck = ''

  constructor(t: Test) {
    for (const name of opening) {
      intercept(t, name, () => {
        if (++this.count !== this.at) return undefined
        this.struck = name
        return failure('EMFILE', name)
      })
    }
  }

  async during(at: number, call: () => Promise<unknown>): Promise<CheckpointError | undefined> {
    Object.assign(this, { at, count: 0, struck: '' })
    try {
      await call()
      return undefined
    } catch (error) {
      if (error instanceof CheckpointError) return error
      throw error
    } finally {
      this.at = 0
    }
  }
}

/** Runs all jobs in this thread, where the test can make native calls fail. Has a peer memory of its own. */
function clientHere(options: Parameters<typeof createClientIn>[1]): CheckpointClient {
  const pool = inlinePool()
  return createClientIn({ ...hostEnvironment, pool: () => pool, peers: new PeerMemory() }, options)
}

function assertNamed(t: Test, error: CheckpointError, what: string): void {
  const { code, message, vm, cause } = error
  if (code !== 'ERR_SYSTEM' || error.errno !== os.constants.errno.EMFILE)
    t.fail(`${what}: ${code} ${String(error.errno)}: ${message}`)
  if (!message.includes('ulimit -n')) t.fail(`${what}: the message does not advise what to do: ${message}`)
  if (vm !== 'vm1' && what !== 'listVirtualMachines') t.fail(`${what}: no VM`)
  if (!(cause instanceof Error)) t.fail(`${what}: no cause`)
}

t.test('every call names the descriptor limit when no descriptor is left', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 64 * 1024 })
  t.teardown(() => bhyve.stop())
  const checkpointDirectory = scratch(t)
  const options = { runDirectory: bhyve.runDirectory, checkpointDirectory }
  const steady = clientHere({ ...options, dialect: 'descriptor' })
  await steady.createCheckpoint('vm1', { name: 'kept' })
  const exhaustion = new Exhaustion(t)
  const args = ['-c2', '-m4M', '-s0,hostbridge', '-s31,lpc', '-o', `rundir=${bhyve.runDirectory}`, 'vm1']
  const operations: Record<string, (client: CheckpointClient) => Promise<unknown>> = {
    createCheckpoint: (client) => client.createCheckpoint('vm1', { name: 'new', fsync: false }),
    listCheckpoints: (client) => client.listCheckpoints('vm1'),
    getCheckpoint: (client) => client.getCheckpoint('vm1', 'kept'),
    verifyCheckpoint: (client) => client.verifyCheckpoint('vm1', 'kept', { depth: 'content' }),
    pinCheckpoint: (client) => client.pinCheckpoint('vm1', 'kept'),
    planRestore: (client) => client.planRestore('vm1', 'kept', { args }),
    pause: (client) => client.pause('vm1').finally(() => process.kill(bhyve.pid, 'SIGCONT')),
    'pause by pid': (client) => client.pause('vm1', { pid: bhyve.pid }),
    resume: (client) => client.resume('vm1', { pid: bhyve.pid }),
    listVirtualMachines: (client) => client.listVirtualMachines(),
    destroyAll: (client) => client.destroyAll('vm1'),
  }
  const owned = native.ownedDescriptors()
  for (const [name, operation] of Object.entries(operations)) {
    let failures = 0
    for (let at = 1; ; at++) {
      const client = clientHere(options)
      const error = await exhaustion.during(at, () => operation(client))
      await client.idle()
      if (exhaustion.struck === '') break
      if (error !== undefined) assertNamed(t, error, name)
      if (error !== undefined) failures++
      if (native.ownedDescriptors() !== owned) t.fail(`${name}: descriptors leaked`)
      if (name === 'destroyAll') continue
      const listed = await steady.listCheckpoints('vm1')
      if (listed.some(({ state }) => state !== 'complete')) t.fail(`${name}: ${JSON.stringify(listed)}`)
    }
    t.ok(failures > 0, `${name}: ${failures} failures`)
  }
})

t.test('suspend: loses no state when descriptors run out', { timeout: 120_000 }, async (t) => {
  const checkpointDirectory = scratch(t)
  const exhaustion = new Exhaustion(t)
  const outcomes = { running: 0, saved: 0 }
  let bhyve: SimulatedBhyve | undefined
  t.teardown(() => bhyve?.stop())
  for (let at = 1; ;) {
    bhyve ??= await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 64 * 1024 })
    const client = clientHere({
      runDirectory: bhyve.runDirectory,
      checkpointDirectory,
      dialect: 'descriptor',
    })
    const error = await exhaustion.during(at, () => client.suspend('vm1', { fsync: false }))
    const what = `suspend, call ${at} (${exhaustion.struck})`
    if (error !== undefined) assertNamed(t, error, what)
    const [saved] = await client.listCheckpoints('vm1')
    if (error !== undefined) outcomes[saved === undefined ? 'running' : 'saved']++
    if (saved === undefined) await client.createCheckpoint('vm1', { fsync: false })
    else {
      if (saved.state !== 'complete' || !saved.poweredOff) t.fail(`${what}: ${JSON.stringify(saved)}`)
      await bhyve.exited
      await bhyve.stop()
      bhyve = undefined
    }
    await client.destroyAll('vm1')
    if (exhaustion.struck === '') break
    // Take larger steps after the request was sent, because each suspended VM must be replaced by a new one.
    at += saved === undefined ? 1 : 4
  }
  t.ok(outcomes.running > 5 && outcomes.saved > 3, JSON.stringify(outcomes))
})

t.test('create: does not leave a struct bhyve without a request when descriptors run out', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 64 * 1024, dialect: 'struct' })
  t.teardown(() => bhyve.stop())
  const client = clientHere({ runDirectory: bhyve.runDirectory, checkpointDirectory: scratch(t) })
  await client.createCheckpoint('vm1', { name: 'before' })
  const listed = await client.listCheckpoints('vm1')
  const other = clientHere({ runDirectory: bhyve.runDirectory, checkpointDirectory: scratch(t) })
  const release = intercept(t, 'processStatus', () => failure('EMFILE', 'open'))
  assertNamed(t, await rejection(other.createCheckpoint('vm1')), 'struct')
  release()
  // Without a request, bhyve would have repeated the previous one, whose stage is gone. The next request succeeds.
  t.match(await other.createCheckpoint('vm1'), { name: 'checkpoint' })
  t.strictSame(await client.listCheckpoints('vm1'), listed)
})

t.test('restore: reports the descriptor limit when bhyve cannot be started because of it', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 4 * 1024 * 1024 })
  const runDirectory = path.join(scratch(t), 'run')
  fs.mkdirSync(runDirectory)
  const checkpointDirectory = scratch(t)
  await clientHere({ runDirectory: bhyve.runDirectory, checkpointDirectory }).createCheckpoint('vm1')
  await bhyve.stop()
  const args = ['-c2', '-m4M', '-s0,hostbridge', '-s31,lpc', '-o', `rundir=${runDirectory}`, 'vm1']
  const taken: number[] = []
  const pool = inlinePool()
  const client = createClientIn(
    {
      ...hostEnvironment,
      peers: new PeerMemory(),
      pool: () => ({
        ...pool,
        run: async (job, onStart) => {
          const result = await pool.run(job, onStart)
          // This is the last job before the start of bhyve.
          if (job.name === 'holdCheckpoint') queueMicrotask(() => takeAll(taken))
          return result
        },
      }),
    },
    { runDirectory, checkpointDirectory },
  )
  const restoring = rejection(client.restore('vm1', 'checkpoint', { args, bhyve: simulatedBhyve }))
  await until(() => taken.length > 0, 'the descriptors to be taken')
  await new Promise((resolve) => setImmediate(resolve))
  for (const descriptor of taken) fs.closeSync(descriptor)
  const error = await restoring
  assertNamed(t, error, 'restore')
  t.match(error, { vmState: 'off', checkpoint: 'checkpoint' })
  t.equal((await client.getCheckpoint('vm1', 'checkpoint')).restoredAt, undefined)
})

interface Outcome {
  failed: string[]
  complete: number
}

/** Runs the script in a process of its own with this limit of descriptors. */
async function withLimit(
  limit: number,
  runDirectory: string,
  directory: string,
  ...more: string[]
): Promise<Outcome> {
  const script = fileURLToPath(new URL('../support/few-descriptors.mjs', import.meta.url))
  const command = `ulimit -n ${limit}; exec "$@"`
  const words = ['-c', command, 'sh', process.execPath, script, runDirectory, directory, ...more]
  const { stdout } = await promisify(execFile)('sh', words, { env: childEnvironment(), timeout: 280_000 })
  return JSON.parse(stdout) as Outcome
}

t.test('calls wait when a fleet needs more descriptors than the limit', { timeout: 600_000 }, async (t) => {
  for (const { limit, count, what } of [
    { limit: 256, count: 300, what: 'create' },
    { limit: 64, count: 100, what: 'mix' },
  ]) {
    const vms = Array.from({ length: count }, (_, index) => `vm${index}`)
    const fleet = await SimulatedFleet.start({ vms, memoryBytes: 64 * 1024, writeRate: 256 * 1024 })
    const outcome = await withLimit(limit, fleet.runDirectory, scratch(t), String(count), what)
    await fleet.stop()
    t.strictSame(outcome, { failed: [], complete: count }, `${count} VMs, ${limit} descriptors, ${what}`)
  }
})

t.test('suspend: publishes the state even if the host program takes every descriptor', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm0', memoryBytes: 2 ** 20, writeRate: 2 ** 20 })
  t.teardown(() => bhyve.stop())
  const outcome = await withLimit(64, bhyve.runDirectory, scratch(t), '1', 'hungry')
  t.strictSame(outcome, { failed: [], complete: 1 })
})

/** The budget of a process with a limit of `limit` descriptors, of which the host program has opened `host`. */
function budgetOf(limit: number, host: () => number): DescriptorBudget {
  return new DescriptorBudget({ limit: () => limit, open: host, held: () => 0, toCome: () => 0 })
}

function cancellationOf(options: { signal?: AbortSignal; timeout?: number } = {}): Cancellation {
  return new Cancellation({ doing: 'waiting', vm: 'vm1', ...options })
}

/** Work that runs until the test ends it. */
class Work {
  readonly begun: string[] = []
  readonly #ends = new Map<string, () => void>()

  readonly run = (name: string) => (): Promise<void> => {
    this.begun.push(name)
    return new Promise((resolve) => this.#ends.set(name, resolve))
  }

  end(name: string): void {
    this.#ends.get(name)!()
  }
}

t.test('descriptor budget: grants calls in order, even a large one behind small ones', async (t) => {
  const work = new Work()
  // The budget leaves eight descriptors to the host program.
  const budget = budgetOf(18, () => 0)
  const take = (name: string, count: number) => budget.during(count, cancellationOf(), work.run(name))
  const all = [take('a', 4), take('b', 4), take('large', 9), take('c', 1)]
  await until(() => work.begun.length === 2, 'two')
  t.strictSame(work.begun, ['a', 'b'])
  work.end('a')
  await all[0]
  t.strictSame(work.begun, ['a', 'b'], 'the small call waits behind the large one')
  work.end('b')
  await until(() => work.begun.length === 4, 'the rest')
  t.strictSame(work.begun, ['a', 'b', 'large', 'c'])
  work.end('large')
  work.end('c')
  await Promise.all(all)
})

t.test('descriptor budget: a cancelled call does not delay the calls behind it', async (t) => {
  // The timer of a timeout does not keep this process alive, so use another timer.
  const alive = setInterval(() => undefined, 1000)
  t.teardown(() => clearInterval(alive))
  const work = new Work()
  const budget = budgetOf(18, () => 0)
  const first = budget.during(10, cancellationOf(), work.run('first'))
  const controller = new AbortController()
  const aborted = budget.during(10, cancellationOf({ signal: controller.signal }), work.run('aborted'))
  const late = budget.during(1, cancellationOf({ timeout: 1 }), work.run('late'))
  await t.rejects(late, { code: 'ERR_TIMEOUT' })
  const next = budget.during(10, cancellationOf(), work.run('next'))
  controller.abort()
  await t.rejects(aborted, { code: 'ABORT_ERR' })
  work.end('first')
  await first
  await until(() => work.begun.includes('next'), 'the next one')
  t.strictSame(work.begun, ['first', 'next'])
  work.end('next')
  await next
})

t.test('descriptor budget: calls wait for descriptors of the library, not of the host program', async (t) => {
  const work = new Work()
  let host = 0
  const budget = budgetOf(18, () => host)
  const first = budget.during(10, cancellationOf(), work.run('first'))
  const second = rejection(budget.during(4, cancellationOf(), work.run('second')))
  await until(() => work.begun.length === 1, 'the first')
  host = 18
  work.end('first')
  await first
  const { errno } = os.constants
  t.match(await second, {
    code: 'ERR_SYSTEM',
    errno: errno.EMFILE,
    message: /can have 18: 18 are open.*Nothing was started.*ulimit -n/,
  })
  t.match(await rejection(budget.during(1, cancellationOf(), work.run('third'))), { errno: errno.EMFILE })
  host = 6
  const fourth = budget.during(4, cancellationOf(), work.run('fourth'))
  await until(() => work.begun.includes('fourth'), 'the fourth')
  work.end('fourth')
  await fourth
  t.strictSame(work.begun, ['first', 'fourth'])
})

/** Opens descriptors until the limit is reached. */
function takeAll(taken: number[]): void {
  try {
    for (;;) taken.push(fs.openSync('/dev/null', 'r'))
  } catch {
    return
  }
}
