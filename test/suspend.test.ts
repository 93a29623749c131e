/** Suspending a VM: the set in the stage is the VM, and nothing that happens to a manager may cost it. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { type CheckpointClient, createClient, type Progress } from 'bhyve-checkpoint'
import { SimulatedBhyve, type SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { ProcessEnd } from '../dist/bhyve/process_end.js'
import { createClientIn } from '../dist/client.js'
import { isFailure, loadNative } from '../dist/native.js'
import { realSurroundings } from '../dist/options.js'
import type { JobRunner } from '../dist/pool/pool.js'
import {
  checkpointFiles,
  childEnvironment,
  contents,
  failure,
  inlinePool,
  intercept,
  openDescriptors,
  rejection,
  scratch,
  tree,
  until,
} from './support/index.js'

const MiB = 1024 * 1024
const native = loadNative()

interface World {
  bhyve: SimulatedBhyve
  client: CheckpointClient
  root: string
  /** The VM's checkpoints. */
  directory: string
}

async function start(t: Test, options: Partial<SimulatorOptions> = {}): Promise<World> {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: MiB, ...options })
  t.teardown(() => bhyve.stop())
  const root = scratch(t)
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: root })
  return { bhyve, client, root, directory: path.join(root, 'vm1') }
}

function digest(file: string): string {
  return createHash('sha256').update(fs.readFileSync(file)).digest('hex')
}

/** Dead, if perhaps not yet waited for by the test that started it. */
function isGone(pid: number): boolean {
  const status = native.processStatus(pid)
  return isFailure(status) || status.state === 'zombie'
}

interface Asked {
  bhyve: Pick<SimulatedBhyve, 'runDirectory'>
  root: string
}

/** A client in another process, which can be killed. */
class Manager {
  readonly child: ChildProcess
  #output = ''

  constructor(t: Test, { bhyve, root }: Asked, hold: string, options: object = {}) {
    const script = fileURLToPath(new URL('support/suspend.mjs', import.meta.url))
    const args = [script, bhyve.runDirectory, root, hold, JSON.stringify(options)]
    this.child = spawn(process.execPath, args, {
      env: childEnvironment(),
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    this.child.stdout!.on('data', (chunk) => (this.#output += String(chunk)))
    t.teardown(() => this.child.kill('SIGKILL'))
  }

  get lines(): string[] {
    return this.#output.split('\n').filter((line) => line !== '')
  }

  async reached(phase: string): Promise<void> {
    await until(() => this.lines.includes(phase), `the manager at ${phase}: ${this.#output}`)
  }

  async kill(): Promise<void> {
    this.child.kill('SIGKILL')
    await once(this.child, 'exit')
  }

  async ended(): Promise<string> {
    if (this.child.exitCode === null) await once(this.child, 'exit')
    return this.lines.at(-1) ?? ''
  }
}

t.test('a suspend in every dialect, with both exit statuses', async (t) => {
  for (const dialect of ['struct', 'path', 'descriptor', 'reply'] as const) {
    for (const suspendExitCode of [0, 5]) {
      const { bhyve, client, directory } = await start(t, { dialect, suspendExitCode })
      const before = Date.now() - 5000
      const checkpoint = await client.suspend('vm1')
      t.match(checkpoint, { vm: 'vm1', name: 'suspend', poweredOff: true, pinned: false }, dialect)
      t.ok(checkpoint.createdAt.getTime() > before)
      t.ok(isGone(bhyve.pid), 'resolved once the process is gone')
      t.same(await bhyve.exited, { code: suspendExitCode, signal: null })
      t.match(await client.listCheckpoints('vm1'), [{ name: 'suspend', state: 'complete', poweredOff: true }])
      t.match(await client.verifyCheckpoint('vm1', 'suspend'), { ok: true })
      t.same(checkpointFiles(directory).length, 4, 'nothing else is left')
      t.match(await client.listStored(), ['vm1'])
    }
  }
})

t.test('createCheckpoint with poweroff is the same, under its own default name', async (t) => {
  const { client } = await start(t)
  t.match(await client.createCheckpoint('vm1', { poweroff: true }), { name: 'checkpoint', poweredOff: true })
  for (const options of [{ poweroff: true }, { poweroff: false }, { names: 'x' }, null]) {
    t.match(await rejection(client.suspend('vm1', options as object)), { code: 'ERR_INVALID_OPTION' })
  }
  t.match(await rejection(client.createCheckpoint('vm1', { poweroff: 1 as never })), {
    code: 'ERR_INVALID_OPTION',
  })
})

t.test('the state is as old as the last byte of it, not as the publication', async (t) => {
  const { client, directory } = await start(t)
  const { createdAt } = await client.suspend('vm1')
  const metadata = fs.statSync(path.join(directory, 'suspend.ckp.meta'))
  t.equal(createdAt.getTime(), Math.floor(metadata.mtimeMs))
})

t.test('an exit that takes its time is waited for', async (t) => {
  const { bhyve, client } = await start(t, { suspendExitDelayMs: 2000 })
  await client.suspend('vm1')
  t.ok(isGone(bhyve.pid))
})

t.test('a whole set and a process that never ends', async (t) => {
  const { bhyve, root } = await start(t, { suspendExitDelayMs: 1e9 })
  const surroundings = { ...realSurroundings, exitPatienceMs: 100 }
  const client = createClientIn(surroundings, { runDirectory: bhyve.runDirectory, checkpointDirectory: root })
  const error = await rejection(client.suspend('vm1'))
  t.match(error, { code: 'ERR_SUSPEND_FAILED', vm: 'vm1', checkpoint: 'suspend', vmState: 'unknown' })
  t.equal(error.path, path.join(root, 'vm1', 'suspend.ckp'))
  t.match(await client.listCheckpoints('vm1'), [{ name: 'suspend', state: 'complete', poweredOff: true }])
})

t.test('a timeout bounds the wait for the end of the process too', async (t) => {
  const { client } = await start(t, { suspendExitDelayMs: 1e9 })
  const error = await rejection(client.suspend('vm1', { timeout: 3000 }))
  t.match(error, { code: 'ERR_SUSPEND_FAILED', vmState: 'unknown' })
  t.match(await client.getCheckpoint('vm1', 'suspend'), { poweredOff: true })
})

t.test('an incomplete set and a live process: the VM runs on', async (t) => {
  for (const dialect of ['path', 'descriptor', 'reply'] as const) {
    for (const at of ['open', 'pause', 'memory', 'kernel', 'device'] as const) {
      const { bhyve, client, directory } = await start(t, { dialect, fault: { at, kind: 'fail' } })
      const error = await rejection(client.suspend('vm1'))
      t.match(error, { code: 'ERR_SUSPEND_FAILED', vm: 'vm1', vmState: 'running' }, `${dialect} ${at}`)
      t.ok(error.problems!.length > 0)
      if (dialect === 'reply') t.ok(error.reply, 'what bhyve said is passed on')
      process.kill(bhyve.pid, 0)
      t.same(tree(directory), [], 'nothing is left')
    }
  }
})

t.test('an older state under that name survives a suspend that fails', async (t) => {
  const { client, bhyve, root, directory } = await start(t)
  await client.suspend('vm1')
  const before = contents(directory)
  const { runDirectory } = bhyve
  for (const [kind, vmState] of [
    ['fail', 'running'],
    ['kill', 'off'],
  ] as const) {
    fs.rmSync(path.join(runDirectory, 'vm1'), { force: true })
    const failing = await SimulatedBhyve.start({ vm: 'vm1', fault: { at: 'kernel', kind } })
    const again = createClient({ runDirectory: failing.runDirectory, checkpointDirectory: root })
    t.match(await rejection(again.suspend('vm1')), { code: 'ERR_SUSPEND_FAILED', vmState })
    const after = contents(directory)
    for (const file of Object.keys(before)) t.equal(after[file], before[file], `${kind}: ${file}`)
    await failing.stop()
  }
})

t.test('killed in the middle: the error says that the state is lost, and where the pieces are', async (t) => {
  for (const at of ['memory', 'kernel', 'device', 'metadata'] as const) {
    const { client, directory } = await start(t, { fault: { at, kind: 'kill' } })
    const error = await rejection(client.suspend('vm1'))
    t.match(error, { code: 'ERR_SUSPEND_FAILED', vmState: 'off', message: /lost/ }, at)
    const [listed, ...others] = await client.listCheckpoints('vm1')
    t.same(others, [])
    t.match(listed, { state: 'damaged', path: error.path, poweredOff: true })
    t.match(listed!.name, /^suspend-[0-9a-z]+$/, 'under a fresh name')
    t.ok(fs.existsSync(error.path!))
    const { removed } = await client.pruneCheckpoints('vm1', { keepLast: 0, maxBytes: 0 })
    t.strictSame(removed, [], 'not pruned')
    await client.destroyCheckpoint('vm1', listed!.name)
    t.same(checkpointFiles(directory), [])
  }
})

t.test('bhyve takes its VM away though the metadata did not reach the disk', async (t) => {
  const { client } = await start(t, { fault: { at: 'metadata', kind: 'no-space' } })
  const error = await rejection(client.suspend('vm1'))
  t.match(error, { code: 'ERR_SUSPEND_FAILED', vmState: 'off', message: /lost/ })
  t.match(await client.listCheckpoints('vm1'), [{ state: 'damaged', path: error.path }])
})

t.test('a request that is queued behind a suspend', async (t) => {
  const { bhyve, client, root } = await start(t, { writeRate: MiB / 2 })
  const { runDirectory } = bhyve
  const other = createClient({ runDirectory, checkpointDirectory: root, dialect: 'descriptor' })
  let queued: Promise<unknown>[] = []
  const onProgress = ({ phase }: Progress): void => {
    if (phase !== 'saving' || queued.length > 0) return
    queued = [rejection(other.suspend('vm1', { name: 'second' })), rejection(other.createCheckpoint('vm1'))]
  }
  await client.suspend('vm1', { onProgress })
  const [second, third] = await Promise.all(queued)
  t.match(second, { code: 'ERR_SUSPEND_FAILED', vmState: 'off', message: /without writing anything/ })
  t.match(third, { vmState: 'off' })
  t.match(await other.listCheckpoints('vm1'), [{ name: 'suspend', state: 'complete' }])
  t.same(checkpointFiles(path.join(root, 'vm1')).length, 4)
})

/** A pool whose jobs can be watched and held back. */
function watchedPool(
  before: (name: string) => unknown,
  after: (name: string) => unknown = () => undefined,
): () => JobRunner {
  const real = realSurroundings.pool()
  const run: JobRunner['run'] = async (name, ...args) => {
    await before(name)
    const result = await real.run(name, ...args)
    after(name)
    return result
  }
  return () => ({
    run,
    emptied: () => real.emptied(),
    runFrom: (onStart, name, ...args) => real.runFrom(onStart, name, ...args),
  })
}

t.test('cancelled just before the first byte is sent: nothing happens', async (t) => {
  const { bhyve, root, directory } = await start(t)
  const controller = new AbortController()
  const pool = watchedPool(
    () => undefined,
    (name) => name === 'recordWriter' && controller.abort(),
  )
  const { runDirectory } = bhyve
  // Named: a request of another dialect would be refused, whenever it was sent.
  const options = { runDirectory, checkpointDirectory: root, dialect: 'descriptor' } as const
  const client = createClientIn({ ...realSurroundings, pool }, options)
  await t.rejects(client.suspend('vm1', { signal: controller.signal }), { name: 'AbortError' })
  await client.idle()
  t.equal(isGone(bhyve.pid), false)
  t.same(tree(directory), [])
})

t.test('cancelled or timed out once bhyve is at it: the state is published all the same', async (t) => {
  for (const phase of ['saving', 'checking', 'syncing'] as const) {
    for (const how of ['abort', 'timeout'] as const) {
      if (how === 'timeout' && phase !== 'saving') continue
      const { client, directory } = await start(t, { writeRate: how === 'timeout' ? MiB / 6 : 2 * MiB })
      const controller = new AbortController()
      const onProgress = (progress: Progress): void => {
        if (progress.phase === phase && how === 'abort') controller.abort(new Error('enough'))
      }
      const options = how === 'timeout' ? { timeout: 3_000 } : { signal: controller.signal }
      const error = await client.suspend('vm1', { ...options, onProgress }).catch((reason: unknown) => reason)
      t.match(error, { code: how === 'timeout' ? 'ERR_TIMEOUT' : 'ABORT_ERR' }, `${how} while ${phase}`)
      await client.idle()
      t.ok(fs.existsSync(path.join(directory, 'suspend.ckp')), 'no other call is needed')
      t.match(await client.listCheckpoints('vm1'), [{ name: 'suspend', state: 'complete', poweredOff: true }])
    }
  }
})

t.test('a cancel after the commit point comes too late', async (t) => {
  const { client } = await start(t, { suspendExitDelayMs: 300 })
  const controller = new AbortController()
  const watch = setInterval(() => {
    void client.listCheckpoints('vm1').then(({ length }) => length > 0 && controller.abort())
  }, 5)
  const checkpoint = await client.suspend('vm1', { signal: controller.signal })
  clearInterval(watch)
  t.equal(controller.signal.aborted, true)
  t.match(checkpoint, { name: 'suspend' })
})

t.test('the manager is killed at each phase: the next call of any process publishes the state', async (t) => {
  for (const dialect of ['path', 'descriptor', 'reply'] as const) {
    for (const phase of ['saving', 'checking', 'syncing', 'publishing']) {
      const world = await start(t, { dialect, writeRate: phase === 'saving' ? 4 * MiB : undefined })
      const { bhyve, client, directory } = world
      const manager = new Manager(t, world, phase)
      await manager.reached(phase)
      await manager.kill()
      // In `reply` a bhyve that has nobody to answer to dies of it, but a suspend is not answered.
      t.match(await bhyve.exited, { code: 5 }, `${dialect} ${phase}`)
      t.match(await client.listStored(), ['vm1'], 'listStored counts it')
      t.match(await client.listCheckpoints('vm1'), [{ name: 'suspend', state: 'complete', poweredOff: true }])
      t.same(checkpointFiles(directory).length, 4, 'and nothing else is left')
    }
  }
})

t.test('the manager is killed, and bhyve lives on for a while', async (t) => {
  const world = await start(t, { writeRate: MiB / 2 })
  const { bhyve, client, directory } = world
  const manager = new Manager(t, world, 'saving')
  await manager.reached('saving')
  await manager.kill()
  t.same(await client.listCheckpoints('vm1'), [], 'what bhyve still writes is not a checkpoint yet')
  t.same(await client.destroyAll('vm1'), [])
  await rejection(client.destroyCheckpoint('vm1', 'suspend'))
  await client.pruneCheckpoints('vm1', { keepLast: 0 })
  t.ok(
    tree(directory).some((entry) => entry.endsWith('/intent')),
    'nobody throws it away',
  )
  await bhyve.exited
  t.match(await client.listCheckpoints('vm1'), [{ name: 'suspend', state: 'complete' }])
})

t.test('the manager is killed, and bhyve too', async (t) => {
  const world = await start(t, { writeRate: MiB / 2 })
  const { bhyve, client } = world
  const manager = new Manager(t, world, 'saving')
  await manager.reached('saving')
  await manager.kill()
  process.kill(bhyve.pid, 'SIGKILL')
  await bhyve.exited
  t.match(await client.listCheckpoints('vm1'), [{ state: 'damaged', poweredOff: true, name: /^suspend-/ }])
})

t.test('the manager is killed before it asked: nothing is left of it', async (t) => {
  const root = scratch(t)
  const runDirectory = scratch(t)
  const socket = path.join(runDirectory, 'vm1')
  // A full backlog: the stage is made, and nobody takes the connection.
  const listener = native.listenStream(socket, 1)
  if (isFailure(listener)) return t.fail('no listener')
  t.teardown(() => native.close(listener))
  for (let taken = native.connectStream(socket); !isFailure(taken); taken = native.connectStream(socket)) {
    const descriptor = taken
    t.teardown(() => native.close(descriptor))
  }
  const manager = new Manager(t, { bhyve: { runDirectory }, root }, 'never')
  const directory = path.join(root, 'vm1')
  await until(() => tree(directory).some((entry) => entry.endsWith('/intent')), 'the intent')
  await manager.kill()
  t.same(await createClient({ runDirectory, checkpointDirectory: root }).listCheckpoints('vm1'), [])
  t.same(checkpointFiles(directory), [])
})

t.test(
  'a suspend that failed behind its dead manager goes once the VM has served another request',
  async (t) => {
    const world = await start(t, { writeRate: MiB / 2 })
    const { bhyve, client, directory } = world
    const orphans = (): string[] => tree(directory).filter((entry) => entry.endsWith('/intent'))
    // A request that bhyve refuses without a word leaves the VM running and nothing written.
    const failing = await SimulatedBhyve.start({
      vm: 'vm1',
      memoryBytes: MiB,
      fault: { at: 'device', kind: 'hang' },
    })
    t.teardown(() => failing.stop())
    const manager = new Manager(t, { bhyve: failing, root: world.root }, 'saving')
    await manager.reached('saving')
    await manager.kill()
    t.equal(orphans().length, 1)
    await client.createCheckpoint('vm1')
    t.equal(orphans().length, 1, 'another process says nothing about this one')
    // The orphan is told to be of the VM that serves us now: as if its suspend had failed.
    const record = path.join(directory, path.dirname(orphans()[0]!), 'peer')
    const { pid } = bhyve
    const { startedAt } = native.processStatus(pid) as { startedAt: string }
    const written = JSON.parse(fs.readFileSync(record, 'utf8')) as object
    fs.writeFileSync(record, JSON.stringify({ ...written, pid, startedAt }))
    await client.createCheckpoint('vm1')
    t.same(orphans(), [])
    t.match(await client.listCheckpoints('vm1'), [{ name: 'checkpoint', state: 'complete' }])
  },
)

t.test('suspendedCheckpoint: what a suspended VM has to be restored from', async (t) => {
  const { bhyve, client, root } = await start(t, { writeRate: 2 * MiB })
  t.equal(await client.suspendedCheckpoint('vm1'), undefined, 'nothing')
  await client.createCheckpoint('vm1', { name: 'live' })
  t.equal(await client.suspendedCheckpoint('vm1'), undefined, 'a checkpoint of a VM that ran on is none')
  t.match(await rejection(client.suspendedCheckpoint('')), { code: 'ERR_INVALID_VM_NAME' })
  // Asked as soon as bhyve is gone, while its state is still being published.
  const { runDirectory } = bhyve
  let release: () => void = () => undefined
  const published = new Promise<void>((resolve) => (release = resolve))
  const pool = watchedPool((name) => (name === 'prepareStage' ? published : undefined))
  const slow = createClientIn({ ...realSurroundings, pool }, { runDirectory, checkpointDirectory: root })
  const suspended = slow.suspend('vm1')
  await bhyve.exited
  let looks = 0
  const counting = watchedPool(
    () => undefined,
    (name) => name === 'suspendedState' && looks++,
  )
  const asking = createClientIn(
    { ...realSurroundings, pool: counting },
    { runDirectory, checkpointDirectory: root },
  )
  let known: unknown = 'not yet'
  const asked = asking.suspendedCheckpoint('vm1').then((checkpoint) => (known = checkpoint))
  await until(() => looks >= 3, 'looks at a state that is being published')
  t.equal(known, 'not yet')
  release()
  await suspended
  await asked
  t.match(known, { name: 'suspend', poweredOff: true })
})

t.test('the name is taken while the VM is being saved', async (t) => {
  const { bhyve, client, root, directory } = await start(t, { writeRate: 2 * MiB })
  const donor = await start(t)
  await donor.client.createCheckpoint('vm1', { name: 'suspend' })
  let taken = false
  const onProgress = ({ phase }: Progress): void => {
    if (phase !== 'saving' || taken) return
    taken = true
    for (const file of checkpointFiles(donor.directory))
      fs.copyFileSync(path.join(donor.directory, file), path.join(directory, file))
  }
  const error = await rejection(client.suspend('vm1', { ifExists: 'fail', onProgress }))
  t.match(error, { code: 'ERR_CHECKPOINT_EXISTS', vmState: 'off', message: /kept as checkpoint 'suspend-/ })
  t.match(await bhyve.exited, { code: 5 })
  const listed = await client.listCheckpoints('vm1')
  t.match(
    listed.map(({ name, state, poweredOff }) => [name.slice(0, 8), state, poweredOff]).sort(),
    [
      ['suspend', 'complete', false],
      ['suspend-', 'complete', true],
    ].sort(),
  )
  t.equal(error.path, listed.find(({ poweredOff }) => poweredOff)!.path)
  t.same(digest(path.join(directory, 'suspend.ckp')), digest(path.join(donor.directory, 'suspend.ckp')))
  t.match(await createClient({ checkpointDirectory: root }).listStored(), ['vm1'])
})

t.test('two suspends in one root are counted together, and one of them goes through', async (t) => {
  const mount = scratch(t)
  spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=160m', 'tmpfs', mount])
  t.teardown(() => spawnSync('umount', ['-l', mount]))
  const memoryBytes = 64 * MiB
  const runDirectory = scratch(t)
  const both = await Promise.all(
    ['vm1', 'vm2'].map((vm) => SimulatedBhyve.start({ vm, runDirectory, memoryBytes, writeRate: 64 * MiB })),
  )
  for (const bhyve of both) t.teardown(() => bhyve.stop())
  const clients = both.map(() => createClient({ runDirectory, checkpointDirectory: mount }))
  const results = await Promise.allSettled(
    clients.map((client, index) => client.suspend(`vm${index + 1}`, { memoryBytes })),
  )
  const refused = results.flatMap((result) =>
    result.status === 'rejected' ? [result.reason as unknown] : [],
  )
  t.match(refused, [{ code: 'ERR_NO_SPACE', requiredBytes: Number, availableBytes: Number }])
  t.match(await clients[0]!.listStored(), [/^vm[12]$/], 'the other one is saved')
})

t.test('no room for a suspend of unknown size either', async (t) => {
  const mount = scratch(t)
  spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=32m', 'tmpfs', mount])
  t.teardown(() => spawnSync('umount', ['-l', mount]))
  const { bhyve } = await start(t)
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: mount })
  t.match(await rejection(client.suspend('vm1')), { code: 'ERR_NO_SPACE' })
  process.kill(bhyve.pid, 0)
  t.match(await client.createCheckpoint('vm1'), { name: 'checkpoint' }, 'a checkpoint alone may be tried')
})

t.test('a live checkpoint that is slow to be published does not replace the VM', async (t) => {
  const { bhyve, root } = await start(t)
  const options = { runDirectory: bhyve.runDirectory, checkpointDirectory: root }
  let release: () => void = () => undefined
  const published = new Promise<void>((resolve) => (release = resolve))
  let isSaved = false
  const pool = watchedPool((name) => {
    isSaved ||= name === 'prepareStage'
    return name === 'prepareStage' ? published : undefined
  })
  const live = rejection(createClientIn({ ...realSurroundings, pool }, options).createCheckpoint('vm1'))
  await until(() => isSaved, 'the live checkpoint to be saved')
  const client = createClient(options)
  await client.createCheckpoint('vm1', { poweroff: true })
  release()
  t.match(await live, { code: 'ERR_CHECKPOINT_EXISTS', message: /suspended/ })
  t.match(await client.suspendedCheckpoint('vm1'), { name: 'checkpoint', poweredOff: true })
})

t.test('a pin stays with the name', async (t) => {
  const { client } = await start(t)
  await client.createCheckpoint('vm1', { name: 'suspend' })
  await client.pinCheckpoint('vm1', 'suspend')
  t.match(await client.suspend('vm1'), { pinned: true, poweredOff: true })
})

t.test('FreeBSD: a VM that its kernel does not have any more was destroyed', async (t) => {
  const fault = { at: 'metadata', kind: 'no-space' } as const
  const { bhyve, root } = await start(t, { fault, suspendExitDelayMs: 4000 })
  const options = {
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: root,
    dialect: 'descriptor',
  } as const
  const system = { platform: 'freebsd', release: '14.2-RELEASE' } as const
  const client = createClientIn({ ...realSurroundings, system, vmmDirectory: scratch(t) }, options)
  const error = await rejection(client.suspend('vm1'))
  t.match(error, { code: 'ERR_SUSPEND_FAILED', vmState: 'off', message: /lost/ })
})

t.test('the disk is really full when the metadata are to be written', async (t) => {
  const mount = scratch(t)
  spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=72m', 'tmpfs', mount])
  t.teardown(() => spawnSync('umount', ['-l', mount]))
  const fault = { at: 'metadata', kind: 'no-space' } as const
  const { bhyve } = await start(t, { fault, writeRate: 2 * MiB })
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: mount })
  const filler = path.join(mount, 'filler')
  const onProgress = ({ phase, bytes }: Progress): void => {
    if (phase !== 'saving' || bytes < MiB / 2 || fs.existsSync(filler)) return
    const { bavail, bsize } = fs.statfsSync(mount)
    // All but what bhyve still has to write of the RAM, and a little of the kernel's state.
    fs.writeFileSync(filler, Buffer.alloc(bavail * bsize - (MiB - bytes) - 64 * 1024))
  }
  const error = await rejection(client.suspend('vm1', { onProgress }))
  t.match(error, { code: 'ERR_SUSPEND_FAILED', vmState: 'off', message: /lost/ })
  t.match(await client.listCheckpoints('vm1'), [{ state: 'damaged', poweredOff: true, path: error.path }])
})

t.test('the end of a process is told by what no other process can be taken for', async (t) => {
  const child = spawn('sleep', ['60'])
  t.teardown(() => child.kill('SIGKILL'))
  const pid = child.pid!
  const status = native.processStatus(pid)
  if (isFailure(status)) return t.fail('a child that runs has a status')
  t.match(native.watchProcess(pid, 'another start'), { errno: os.constants.errno.ESRCH })
  const watch = native.watchProcess(pid, status.startedAt)
  if (isFailure(watch)) return t.fail(`no watch: ${watch.syscall} ${String(watch.errno)}`)
  t.equal(native.hasEnded(watch), 0)
  using end = new ProcessEnd({ uid: 0, pid, startedAt: status.startedAt })
  t.equal(await end.within(50), false)
  child.kill('SIGKILL')
  t.equal(await end.within(20_000), true)
  t.equal(native.hasEnded(watch), 1)
  native.close(watch)
  t.ok(isFailure(native.watchProcess(pid, status.startedAt)) || isGone(pid))
  intercept(t, 'watchProcess', () => failure('ENOSYS', 'watch'))
  using unwatched = new ProcessEnd({ uid: 0, pid, startedAt: status.startedAt })
  t.equal(await unwatched.within(20_000), true, 'a plain look does where there is no watch')
  await until(() => isFailure(native.processStatus(pid)), 'nothing is left of it')
  using unseen = new ProcessEnd({ uid: 0, pid, startedAt: undefined })
  t.equal(await unseen.within(50), false, 'what was never seen may be hidden, not gone')
})

t.test('descriptors come back', async (t) => {
  const fault = { at: 'kernel', kind: 'fail' } as const
  const { client } = await start(t, { fault })
  await rejection(client.suspend('vm1'))
  const before = openDescriptors()
  for (let round = 0; round < 2; round++) await rejection(client.suspend('vm1'))
  await until(() => openDescriptors() <= before, 'the descriptors to come back')
})

/** A client whose jobs run here, and what is done to the stage's `in/` before the set is looked at. */
function spoiling({ bhyve, root, directory }: World, spoil: (inFolder: string) => void): CheckpointClient {
  const pool = inlinePool((job) => {
    if (job !== 'collectStage') return undefined
    const staging = path.join(directory, '.staging')
    spoil(path.join(staging, fs.readdirSync(staging)[0]!, 'in'))
    return undefined
  })
  const options = { runDirectory: bhyve.runDirectory, checkpointDirectory: root }
  return createClientIn({ ...realSurroundings, pool: () => pool }, options)
}

t.test('what bhyve took for done is never thrown away, whatever we think of it', async (t) => {
  const world = await start(t, { suspendExitDelayMs: 300 })
  const client = spoiling(world, (inFolder) => fs.appendFileSync(path.join(inFolder, 'ckp.kern'), 'x'))
  const error = await rejection(client.suspend('vm1'))
  t.match(error, {
    code: 'ERR_SUSPEND_FAILED',
    vmState: 'off',
    problems: [{ code: 'kernel-size-mismatch' }],
  })
  t.match(await client.listCheckpoints('vm1'), [{ state: 'damaged', poweredOff: true }])
  t.ok(isGone(world.bhyve.pid))
  t.equal(fs.statSync(error.path!).size, MiB, 'its RAM is kept')
})

t.test("a guest whose RAM begins like another tool's checkpoint", async (t) => {
  const world = await start(t)
  const client = spoiling(world, (inFolder) => {
    const memory = fs.openSync(path.join(inFolder, 'ckp'), 'r+')
    fs.writeSync(memory, 'BHYVE-CHECKPOINT-MANIFEST-1', 0)
    fs.closeSync(memory)
  })
  const { path: file } = await client.suspend('vm1')
  t.equal(fs.readFileSync(file).toString('latin1', 0, 15), 'BHYVE-CHECKPOIN')
  t.match(await client.listCheckpoints('vm1'), [{ state: 'complete', poweredOff: true }])
  t.match(await client.suspendedCheckpoint('vm1'), { name: 'suspend' })
  await client.destroyCheckpoint('vm1', 'suspend')
  t.strictSame(checkpointFiles(world.directory), [])
})

t.test('a set that cannot be read may be the state', async (t) => {
  const { bhyve, root, client } = await start(t)
  await client.suspend('vm1')
  const target = native as { readStartAt: typeof native.readStartAt }
  const readStartAt = native.readStartAt.bind(native)
  t.teardown(() => (target.readStartAt = readStartAt))
  target.readStartAt = (directory, name, bytes) =>
    name === 'suspend.ckp.manifest'
      ? { errno: os.constants.errno.EIO, syscall: 'read' }
      : readStartAt(directory, name, bytes)
  const pool = inlinePool()
  const options = { runDirectory: bhyve.runDirectory, checkpointDirectory: root }
  const here = createClientIn({ ...realSurroundings, pool: () => pool }, options)
  t.match(await here.listCheckpoints('vm1'), [{ state: 'damaged' }])
  t.match(await rejection(here.suspendedCheckpoint('vm1')), { code: 'ERR_SYSTEM', vm: 'vm1' })
  const since = new Date(Date.now() + 10_000)
  t.equal(await here.suspendedCheckpoint('vm1', { since }), undefined, 'too old to count')
  const second = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: MiB })
  t.teardown(() => second.stop())
  const surroundings = { ...realSurroundings, pool: () => pool }
  const again = createClientIn(surroundings, { ...options, runDirectory: second.runDirectory })
  const file = path.join(root, 'vm1', 'suspend.ckp')
  fs.utimesSync(file, 4e9, 4e9)
  t.match(await rejection(again.createCheckpoint('vm1', { name: 'suspend' })), {
    code: 'ERR_CHECKPOINT_EXISTS',
    path: file,
  })
})

t.test('struct: a state whose name was taken gets one that this bhyve can open', async (t) => {
  const { bhyve, root, directory } = await start(t, { dialect: 'struct' })
  const name = 'n'.repeat(95 - Buffer.byteLength(`${directory}/.ckp`))
  const pool = inlinePool((job) => {
    if (job === 'collectStage') fs.writeFileSync(path.join(directory, `${name}.ckp`), 'taken')
    return undefined
  })
  const options = { runDirectory: bhyve.runDirectory, checkpointDirectory: root, dialect: 'struct' } as const
  const client = createClientIn({ ...realSurroundings, pool: () => pool }, options)
  const error = await rejection(client.createCheckpoint('vm1', { name, poweroff: true, ifExists: 'fail' }))
  t.match(error, { code: 'ERR_CHECKPOINT_EXISTS', vmState: 'off' })
  t.ok(Buffer.byteLength(error.path!) <= 95, error.path!)
  t.match(await client.suspendedCheckpoint('vm1'), { path: error.path })
})

t.test('the state is on the disk before it is scanned', async (t) => {
  const { bhyve, root } = await start(t)
  const started: string[] = []
  const pool = inlinePool((job) => void started.push(job))
  const options = {
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: root,
    dialect: 'descriptor',
  } as const
  await createClientIn({ ...realSurroundings, pool: () => pool }, options).suspend('vm1')
  const steps = ['recordWriter', 'collectStage', 'secureStage', 'passWhole', 'prepareStage', 'commitStage']
  t.strictSame(
    started.filter((job) => steps.includes(job)),
    steps,
  )
})

t.test('where nobody can see what became of the VM, what was written stays', async (t) => {
  const { bhyve, root, directory } = await start(t, { fault: { at: 'kernel', kind: 'fail' } })
  let show: (() => void) | undefined
  const pool = inlinePool((job) => {
    if (job === 'collectStage') show = intercept(t, 'processStatus', () => failure('EACCES', 'open'))
    return undefined
  })
  const options = {
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: root,
    dialect: 'descriptor',
  } as const
  const client = createClientIn({ ...realSurroundings, pool: () => pool }, options)
  const error = await rejection(client.suspend('vm1'))
  t.match(error, { code: 'ERR_SUSPEND_FAILED', vmState: 'unknown', message: /What was written is in/ })
  t.ok(tree(directory).some((entry) => entry.endsWith('/suspend.ckp')))
  show?.()
  process.kill(bhyve.pid, 'SIGKILL')
  await bhyve.exited
  t.match(await client.listCheckpoints('vm1'), [{ state: 'damaged', poweredOff: true, name: /^suspend-/ }])
})

t.test('what others do to the files of a suspend is no failure that bhyve has noticed', async (t) => {
  const spoils: Record<string, (inFolder: string) => void> = {
    'not-a-regular-file': (inFolder) => {
      fs.rmSync(path.join(inFolder, 'ckp.meta'))
      fs.symlinkSync('/nonexistent', path.join(inFolder, 'ckp.meta'))
    },
    'foreign-format': (inFolder) => {
      const memory = fs.openSync(path.join(inFolder, 'ckp'), 'r+')
      fs.writeSync(memory, 'BHYVE-CHECKPOINT-MANIFEST-1', 0)
      fs.closeSync(memory)
      fs.truncateSync(path.join(inFolder, 'ckp.meta'), 100)
    },
  }
  const cases = Object.entries(spoils).map(async ([code, spoil]) => {
    const world = await start(t, { suspendExitDelayMs: 300 })
    const error = await rejection(spoiling(world, spoil).suspend('vm1'))
    t.match(error, { code: 'ERR_SUSPEND_FAILED', vmState: 'off', problems: [{ code }] }, code)
    t.equal(fs.statSync(error.path!).size, MiB, `${code}: its RAM is kept`)
  })
  await Promise.all(cases)
})

t.test('who is queued behind a suspend and cannot see what it got has not been served', async (t) => {
  const world = await start(t, { writeRate: MiB / 2 })
  const { bhyve, root } = world
  const manager = new Manager(t, world, 'saving')
  await manager.reached('saving')
  await manager.kill()
  let show: (() => void) | undefined
  const pool = inlinePool((job) => {
    if (job === 'recordWriter') process.kill(bhyve.pid, 'SIGKILL')
    if (job === 'isUntouched')
      show = intercept(t, 'readDirectory', (_, limit) => (limit === 1 ? failure('EIO', 'read') : undefined))
    return undefined
  })
  const options = {
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: root,
    dialect: 'descriptor',
  } as const
  const client = createClientIn({ ...realSurroundings, pool: () => pool }, options)
  t.match(await rejection(client.createCheckpoint('vm1')), { code: 'ERR_CHECKPOINT_FAILED' })
  show?.()
  const left = [{ state: 'damaged', poweredOff: true, name: /^suspend-/ }]
  t.match(await client.listCheckpoints('vm1'), left, 'what is left of the VM is kept')
})
