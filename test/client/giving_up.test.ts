/** Calls that can be cancelled while they wait, what is in flight then, and `idle` with a limit. */
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { AbortError, type CallOptions, type CheckpointClient, createClient } from 'bhyve-checkpoint'
import { isFailure } from '../../dist/base/native.js'
import { createClientIn } from '../../dist/client/client.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import { checkpointFiles, inlinePool, rejection, scratch } from '../support/index.js'
import { store } from '../support/stored.js'

const native = loadSimulatorNative()

/** Every call that waits for the lock of `.staging`. */
const locking: Record<string, (client: CheckpointClient, options: CallOptions) => Promise<unknown>> = {
  listCheckpoints: (client, options) => client.listCheckpoints('vm1', options),
  getCheckpoint: (client, options) => client.getCheckpoint('vm1', 'a', options),
  verifyCheckpoint: (client, options) => client.verifyCheckpoint('vm1', 'a', options),
  verifyContent: (client, options) => client.verifyCheckpoint('vm1', 'a', { depth: 'content', ...options }),
  pinCheckpoint: (client, options) => client.pinCheckpoint('vm1', 'a', true, options),
  suspendedCheckpoint: (client, options) => client.suspendedCheckpoint('vm1', options),
  pruneCheckpoints: (client, options) => client.pruneCheckpoints('vm1', { keepLast: 0 }, options),
  pruneAll: (client, options) => client.pruneAll({ keepLast: 0 }, options),
  destroyCheckpoint: (client, options) => client.destroyCheckpoint('vm1', 'a', options),
  destroyAll: (client, options) => client.destroyAll('vm1', options),
}

const calls: typeof locking = {
  ...locking,
  listStored: (client, options) => client.listStored(options),
  listVirtualMachines: (client, options) => client.listVirtualMachines(options),
  pause: (client, options) => client.pause('vm1', options),
  resume: (client, options) => client.resume('vm1', options),
  idle: (client, options) => client.idle(options),
  createCheckpoint: (client, options) => client.createCheckpoint('vm1', options),
  suspend: (client, options) => client.suspend('vm1', options),
  planRestore: (client, options) => client.planRestore('vm1', 'a', { args: ['vm1'], ...options }),
  restore: (client, options) => client.restore('vm1', 'a', { args: ['vm1'], ...options }),
}

/** Takes the lock of `.staging` as another process does. Returns a function that releases it. */
function holdLock(directory: string): () => void {
  const staging = path.join(directory, '.staging')
  fs.mkdirSync(staging, { mode: 0o700, recursive: true })
  const descriptor = native.openPath(staging, fs.constants.O_DIRECTORY)
  if (isFailure(descriptor)) throw new Error('open')
  if (native.lock(descriptor, 'exclusive') !== 1) throw new Error('lock')
  return () => native.close(descriptor)
}

t.test('every call rejects before it begins if its signal is aborted, and checks both options', async (t) => {
  const { client, directory, put } = store(t)
  put('a')
  const reason = new Error('enough')
  for (const [name, call] of Object.entries(calls)) {
    const error: unknown = await call(client, { signal: AbortSignal.abort(reason) }).catch((e: unknown) => e)
    t.match(error, { name: 'AbortError', code: 'ABORT_ERR', begun: false, cause: reason }, name)
    for (const options of [{ signal: {} }, { timeout: 0 }, { timeout: '1s' }, { sginal: undefined }]) {
      const wrong = await rejection(call(client, options as CallOptions))
      t.match(wrong, { code: 'ERR_INVALID_OPTION' }, `${name} ${JSON.stringify(options)}`)
    }
  }
  t.same(client.inFlight(), [])
  t.equal(checkpointFiles(directory).length, 3)
})

t.test(
  'a call that gives up while another process holds the lock has not begun and never does',
  async (t) => {
    const { root, directory, put } = store(t)
    put('a')
    put('b')
    // Attempts in this thread end before a timer fires. In another thread, one could be under way.
    const pool = inlinePool()
    const client = createClientIn({ ...hostEnvironment, pool: () => pool }, { checkpointDirectory: root })
    const release = holdLock(directory)
    const before = checkpointFiles(directory)
    for (const [name, call] of Object.entries(locking)) {
      const error = await rejection(call(client, { timeout: 60 }))
      t.match(error, { code: 'ERR_TIMEOUT', begun: false, message: /; nothing was / }, name)
      const controller = new AbortController()
      const cancelled = call(client, { signal: controller.signal }).catch((e: unknown) => e)
      controller.abort()
      t.ok((await cancelled) instanceof AbortError, name)
    }
    await client.idle()
    release()
    t.same(client.inFlight(), [])
    t.strictSame(checkpointFiles(directory), before, 'nothing was removed')
    t.match(await client.listCheckpoints('vm1'), [{ pinned: false }, { pinned: false }])
  },
)

/** A client with a pool in which the job `name` waits until `finish` is called. */
function slowly(
  t: Test,
  name: string,
): { client: CheckpointClient; finish: () => void } & ReturnType<typeof store> {
  const stored = store(t)
  let finish: () => void = () => undefined
  const gate = new Promise<void>((resolve) => (finish = resolve))
  // As a thread that works does, this keeps the process alive.
  const alive = setInterval(() => undefined, 1000)
  t.teardown(() => clearInterval(alive))
  const jobs = inlinePool()
  const pool: typeof jobs = {
    run: async (job, onStart) => {
      if (job.name !== name) return jobs.run(job, onStart)
      onStart?.()
      await gate
      return jobs.run(job)
    },
    emptied: () => jobs.emptied(),
    takeNoted: (directory) => jobs.takeNoted(directory),
  }
  const environment = { ...hostEnvironment, pool: () => pool }
  const client = createClientIn(environment, { checkpointDirectory: stored.root })
  return { ...stored, client, finish }
}

t.test('a removal that has begun may still happen, is in flight, and idle waits for it', async (t) => {
  const { client, finish, directory, put } = slowly(t, 'destroyCheckpoint')
  put('a')
  const controller = new AbortController()
  const removal = client.destroyCheckpoint('vm1', 'a', { signal: controller.signal })
  const subject = { operation: 'destroy', vm: 'vm1', checkpoint: 'a' }
  t.match(client.inFlight(), [{ ...subject, begun: true, cancelled: false, elapsedMs: Number }])
  controller.abort()
  const error: unknown = await removal.catch((e: unknown) => e)
  t.match(error, { name: 'AbortError', begun: true, message: /the removal may still happen/ })
  t.match(client.inFlight(), [{ ...subject, begun: true, cancelled: true }])
  t.match(await rejection(client.idle({ timeout: 20 })), {
    code: 'ERR_TIMEOUT',
    message: 'Waiting until no call is in flight: timed out after 20 ms; the calls continue',
  })
  const impatient = new AbortController()
  const idle = client.idle({ signal: impatient.signal }).catch((e: unknown) => e)
  impatient.abort()
  t.ok((await idle) instanceof AbortError)
  t.equal(checkpointFiles(directory).length, 3, 'a limit of idle cancels nothing')
  finish()
  await client.idle({ timeout: 30_000 })
  t.same(client.inFlight(), [])
  t.same(checkpointFiles(directory), [])
})

t.test('a timeout of a removal reports whether it has begun', async (t) => {
  for (const name of ['destroyCheckpoints', 'pruneCheckpoints'] as const) {
    const { client, finish, put } = slowly(t, name)
    put('a')
    const call = name === 'destroyCheckpoints' ? locking.destroyAll! : locking.pruneCheckpoints!
    const error = await rejection(call(client, { timeout: 20 }))
    t.match(error, { code: 'ERR_TIMEOUT', vm: 'vm1', begun: true, message: /may still happen/ }, name)
    finish()
    await client.idle()
  }
})

t.test('destroyAll: a dry run returns the names and removes nothing', async (t) => {
  const { client, directory, put } = store(t)
  put('b')
  put('a')
  fs.writeFileSync(path.join(directory, 'vmm.ckp'), 'VNDKSAVE')
  const before = checkpointFiles(directory)
  const would = await client.destroyAll('vm1', { dryRun: true })
  t.strictSame(checkpointFiles(directory), before)
  t.strictSame(await client.destroyAll('vm1'), would)
  t.ok(would.includes('a') && would.includes('b'))
  t.strictSame(await client.destroyAll('none', { dryRun: true }), [])
  const wrong = client.destroyAll('vm1', { dryRun: 'yes' } as object)
  t.match(await rejection(wrong), { code: 'ERR_INVALID_OPTION' })
  t.same(createClient({ checkpointDirectory: scratch(t) }).inFlight(), [])
})
