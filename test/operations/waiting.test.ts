/** Calls that wait for bhyve, a lock or a thread: they end, obey a cancel, and report progress. */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { createClientIn } from '../../dist/client/client.js'
import { isFailure } from '../../dist/base/native.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import { firstWarning, inlinePool, intercept, rejection, scratch, tree } from '../support/index.js'
import { start } from '../support/small_vm.js'

const native = loadSimulatorNative()
const MiB = 1024 * 1024

t.test('create: all calls that wait for a hanging bhyve reject with ERR_STALLED', async (t) => {
  const { runDirectory } = await start(t, { fault: { at: 'accept', kind: 'hang' } })
  const checkpointDirectory = scratch(t)
  const client = () => createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })
  const both = [client(), client()].map((one) =>
    rejection(one.createCheckpoint('vm1', { stallTimeout: 300 })),
  )
  for (const error of await Promise.all(both)) t.match(error, { code: 'ERR_STALLED', vmState: 'running' })
  const same = client()
  for (let call = 0; call < 2; call++) {
    t.match(
      await rejection(same.createCheckpoint('vm1', { stallTimeout: 300 })),
      { code: 'ERR_STALLED' },
      `call ${call}`,
    )
  }
})

t.test('create: can be cancelled while another process holds the lock', async (t) => {
  const { runDirectory } = await start(t)
  const checkpointDirectory = scratch(t)
  const client = createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })
  const staging = path.join(checkpointDirectory, 'vm1/.staging')
  let held: number | undefined
  const hold = ({ phase }: { phase: string }): void => {
    if (phase !== 'syncing' || held !== undefined) return
    const descriptor = native.openPath(staging, fs.constants.O_DIRECTORY)
    if (isFailure(descriptor)) throw new Error('open')
    held = descriptor
    t.equal(native.lock(descriptor, 'exclusive'), 1)
  }
  const controller = new AbortController()
  const cancel = (progress: { phase: string }): void => {
    hold(progress)
    if (progress.phase === 'publishing') setTimeout(() => controller.abort(), 100)
  }
  const error: unknown = await client
    .createCheckpoint('vm1', { signal: controller.signal, onProgress: cancel })
    .catch((e: unknown) => e)
  t.match(error, { code: 'ABORT_ERR' })
  native.close(held!)
  await client.idle()
  t.strictSame(await client.listCheckpoints('vm1'), [], 'nothing was published')
  t.strictSame(tree(staging), [])
})

t.test('create: obeys a cancel that comes just when the commit finds the lock held', async (t) => {
  const { runDirectory } = await start(t)
  const controller = new AbortController()
  let isPublishing = false
  intercept(t, 'lock', () => {
    if (!isPublishing || controller.signal.aborted) return undefined
    controller.abort()
    return 0
  })
  const client = createClientIn(
    { ...hostEnvironment, pool: () => inlinePool() },
    { runDirectory, checkpointDirectory: scratch(t), dialect: 'descriptor' },
  )
  const onProgress = ({ phase }: { phase: string }) => (isPublishing ||= phase === 'publishing')
  const call = client.createCheckpoint('vm1', { signal: controller.signal, onProgress })
  t.match(await call.catch((error: unknown) => error), { code: 'ABORT_ERR' })
  await client.idle()
  t.strictSame(await client.listCheckpoints('vm1'), [], 'nothing was published')
})

t.test('create: ignores failed progress polls', async (t) => {
  const { runDirectory } = await start(t, { memoryBytes: MiB, writeRate: 4 * MiB })
  const failing = inlinePool((name) =>
    name === 'savedSoFar' ? Promise.reject(new Error('no descriptor')) : undefined,
  )
  const client = createClientIn(
    { ...hostEnvironment, pool: () => failing },
    { runDirectory, checkpointDirectory: scratch(t), dialect: 'descriptor' },
  )
  t.match(await client.createCheckpoint('vm1', { stallTimeout: 100, onProgress: () => undefined }), {
    name: 'checkpoint',
  })
})

t.test('errors: report the state of the VM as far as it is known', async (t) => {
  const { runDirectory } = await start(t, { memoryBytes: MiB, writeRate: 300 * 1024 })
  const client = createClient({ runDirectory, checkpointDirectory: scratch(t), dialect: 'descriptor' })
  t.match(await rejection(client.createCheckpoint('vm1', { timeout: 1000 })), {
    code: 'ERR_TIMEOUT',
    vm: 'vm1',
    checkpoint: 'checkpoint',
    vmState: 'running',
  })
  await client.idle()
  for (let round = 0; round < 10; round++) {
    const dying = await start(t, { vm: 'vm2', fault: { at: 'memory', kind: 'kill' } })
    const other = createClient({
      runDirectory: dying.runDirectory,
      checkpointDirectory: scratch(t),
      dialect: 'descriptor',
    })
    t.match(await rejection(other.createCheckpoint('vm2')), { code: 'ERR_CHECKPOINT_FAILED', vmState: 'off' })
  }
  t.match(await rejection(client.createCheckpoint('vm1', { name: '' })), { vm: 'vm1', checkpoint: '' })
})

t.test('progress: a rejecting function only warns, and a cancel ends the reports', async (t) => {
  const { runDirectory } = await start(t, { memoryBytes: MiB, writeRate: 4 * MiB })
  const client = createClient({ runDirectory, checkpointDirectory: scratch(t), dialect: 'descriptor' })
  const warned = firstWarning()
  const rejecting = (async () => {
    throw new Error('a bug in the progress bar')
  }) as () => void
  await t.resolves(client.createCheckpoint('vm1', { onProgress: rejecting }))
  t.match(await warned, { message: 'a bug in the progress bar' })
  const controller = new AbortController()
  let after = 0
  const onProgress = ({ phase }: { phase: string }): void => {
    if (controller.signal.aborted) after++
    if (phase === 'saving') controller.abort()
  }
  await client.createCheckpoint('vm1', { signal: controller.signal, onProgress }).catch(() => undefined)
  await client.idle()
  t.equal(after, 0, 'nothing is reported after the rejection')
})

t.test('create: can be cancelled while the commit waits for a thread', async (t) => {
  const { runDirectory } = await start(t)
  const controller = new AbortController()
  const slow = inlinePool((name) => {
    if (name === 'commitStage') controller.abort()
    return undefined
  })
  const client = createClientIn(
    { ...hostEnvironment, pool: () => slow },
    { runDirectory, checkpointDirectory: scratch(t), dialect: 'descriptor' },
  )
  const error: unknown = await client
    .createCheckpoint('vm1', { signal: controller.signal })
    .catch((e: unknown) => e)
  t.match(error, { code: 'ABORT_ERR' })
  await client.idle()
  t.strictSame(await client.listCheckpoints('vm1'), [])
})

t.test("create: reports the phase 'queued' while it waits for its turn", async (t) => {
  const { runDirectory } = await start(t, { memoryBytes: MiB, writeRate: 4 * MiB })
  const client = createClient({ runDirectory, checkpointDirectory: scratch(t), dialect: 'descriptor' })
  const order: string[] = []
  const report = (name: string) => ({
    name,
    onProgress: ({ phase }: { phase: string }) => order.push(`${name} ${phase}`),
  })
  await Promise.all([
    client.createCheckpoint('vm1', report('a')),
    client.createCheckpoint('vm1', report('b')),
  ])
  t.ok(order.indexOf('b queued') < order.indexOf('a saving'))
  t.match(await rejection(client.createCheckpoint('vm1', { timeout: -1 })), {
    code: 'ERR_INVALID_OPTION',
    vm: 'vm1',
  })
})
