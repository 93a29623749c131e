/** Cancels and timeouts, programs and Workers that end during a call, and many VMs at once. */
import events from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { AbortError, CheckpointError, createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve, simulatedBhyve, type SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { withDetails } from '../../dist/base/errors.js'
import { loadNative } from '../../dist/base/native.js'
import { fromPortable, toPortable } from '../../dist/pool/messages.js'
import {
  checkpointFiles,
  openDescriptors,
  rejection,
  runScript,
  scratch,
  tree,
  until,
} from '../support/index.js'
import { terminateWorkers } from '../support/workers.js'

const MiB = 1024 * 1024

async function start(t: Test, options: Partial<SimulatorOptions> = {}): Promise<SimulatedBhyve> {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: MiB, ...options })
  t.teardown(() => bhyve.stop())
  return bhyve
}

t.test('a cancelled create rejects at once, the VM continues and nothing is published', async (t) => {
  for (const dialect of ['struct', 'path', 'descriptor', 'reply'] as const) {
    const { runDirectory } = await start(t, { dialect, memoryBytes: 4 * MiB, writeRate: 8 * MiB })
    const checkpointDirectory = scratch(t)
    const client = createClient({
      runDirectory,
      checkpointDirectory,
      dialect: dialect === 'reply' ? 'descriptor' : dialect,
    })
    const controller = new AbortController()
    const onProgress = ({ phase }: { phase: string }) =>
      phase === 'saving' && controller.abort(new Error('enough'))
    const call = client.createCheckpoint('vm1', { signal: controller.signal, onProgress })
    const error: unknown = await call.catch((reason: unknown) => reason)
    t.ok(error instanceof AbortError, dialect)
    t.match(error, { name: 'AbortError', code: 'ABORT_ERR', begun: true, cause: { message: 'enough' } })
    const stages = fs.readdirSync(path.join(checkpointDirectory, 'vm1/.staging'))
    t.equal(stages.length, 1, `${dialect}: bhyve continues to write to its stage`)
    await client.idle()
    t.strictSame(tree(checkpointDirectory), [], `${dialect}: nothing left`)
    t.match(await client.createCheckpoint('vm1'), { name: 'checkpoint' }, `${dialect}: the VM runs`)
  }
})

t.test('a call rejects before it starts if its signal is already aborted', async (t) => {
  const client = createClient({ runDirectory: '/nonexistent', checkpointDirectory: '/nonexistent' })
  const error: unknown = await client
    .createCheckpoint('vm1', { signal: AbortSignal.abort() })
    .catch((e: unknown) => e)
  t.match(error, {
    name: 'AbortError',
    code: 'ABORT_ERR',
    begun: false,
    message: /cancelled; nothing was started$/,
  })
  const late: unknown = await client
    .restore('vm1', 'a', { args: ['vm1'], signal: AbortSignal.abort(), timeout: 1 })
    .catch((e: unknown) => e)
  t.match(late, { name: 'AbortError', begun: false, message: /nothing was started$/ })
})

t.test('the message of a cancel reports whether a request was sent', async (t) => {
  for (const poweroff of [false, true]) {
    const { runDirectory } = await start(t, { writeRate: 2 * MiB })
    const client = createClient({ runDirectory, checkpointDirectory: scratch(t) })
    const cancelAt = async (wanted: string): Promise<AbortError> => {
      const controller = new AbortController()
      const onProgress = ({ phase }: { phase: string }) => phase === wanted && controller.abort()
      const call = client.createCheckpoint('vm1', { poweroff, signal: controller.signal, onProgress })
      const error: unknown = await call.catch((reason: unknown) => reason)
      if (error instanceof AbortError) return error
      throw new Error('no AbortError', { cause: error })
    }
    t.match(await cancelAt('queued'), { begun: false, message: /cancelled; nothing was sent to bhyve$/ })
    const outcome = poweroff
      ? /bhyve completes the save .*the state will be published if it is complete/
      : /bhyve completes the save .*nothing will be published/
    t.match(await cancelAt('saving'), { begun: true, message: outcome })
    await client.idle()
  }
})

t.test('an error keeps `begun` when details are added and when it changes threads', async (t) => {
  for (const begun of [true, false]) {
    const error = new CheckpointError('ERR_TIMEOUT', 'enough', { begun })
    t.match(withDetails(error, { vm: 'vm1' }), { vm: 'vm1', begun })
    t.match(fromPortable(structuredClone(toPortable(error))), { begun })
  }
})

t.test('a thousand calls can share one signal', async (t) => {
  const warnings: Error[] = []
  const warned = (warning: Error) => warnings.push(warning)
  process.on('warning', warned)
  t.teardown(() => process.off('warning', warned))
  const { runDirectory } = await start(t, { writeRate: MiB })
  const client = createClient({ runDirectory, checkpointDirectory: scratch(t) })
  const controller = new AbortController()
  const { signal } = controller
  const listening = () => events.getEventListeners(signal, 'abort').length
  await t.rejects(client.verifyCheckpoint('vm1', 'none', { signal }))
  t.equal(listening(), 0, 'a call that has ended leaves no listener')
  const calls = Array.from({ length: 1000 }, () => client.createCheckpoint('vm1', { signal }))
  const ends = Promise.allSettled(calls)
  t.equal(listening(), 1)
  controller.abort()
  const reasons = (await ends).map((end) => (end.status === 'rejected' ? (end.reason as Error).name : 'none'))
  t.strictSame([...new Set(reasons)], ['AbortError'])
  await client.idle()
  await new Promise((resolve) => setImmediate(resolve))
  t.equal(listening(), 0)
  t.strictSame(warnings, [])
})

t.test('every call works in a program whose working directory was removed', async (t) => {
  const script = path.join(scratch(t), 'bhyve')
  const command = `exec env NODE_OPTIONS= '${process.execPath}' '${simulatedBhyve}' "$@"`
  // bhyve can start in a removed directory. Node, which runs the simulated bhyve, cannot.
  fs.writeFileSync(script, `#!/bin/sh\necho $$ >'${script}.pid'\ncd / && ${command}\n`, { mode: 0o755 })
  for (const when of ['before', 'after']) {
    const { runDirectory } = await start(t, { memoryBytes: 4 * MiB })
    const ended = await runScript('without-cwd.mjs', [runDirectory, scratch(t), when, script])
    process.kill(Number(fs.readFileSync(`${script}.pid`, 'utf8')), 'SIGKILL')
    const outcomes = Object.entries(JSON.parse(ended.stdout) as Record<string, string>)
    t.strictSame(
      outcomes.filter(([, outcome]) => outcome !== 'resolved'),
      [],
      `removed ${when} the first call`,
    )
    t.equal(outcomes.length, 10)
  }
})

t.test('a call that times out in the queue sends nothing', async (t) => {
  const { runDirectory } = await start(t, { memoryBytes: 4 * MiB, writeRate: 8 * MiB })
  const checkpointDirectory = scratch(t)
  const client = createClient({ runDirectory, checkpointDirectory })
  const first = client.createCheckpoint('vm1', { name: 'first' })
  const second = rejection(client.createCheckpoint('vm1', { name: 'second', timeout: 50 }))
  const third = client.createCheckpoint('vm1', { name: 'third', timeout: 30_000 })
  t.match(await second, {
    code: 'ERR_TIMEOUT',
    begun: false,
    message: /timed out after 50 ms; nothing was sent to bhyve/,
  })
  t.match(await first, { name: 'first' })
  t.match(await third, { name: 'third' }, 'the next call in the queue succeeds')
  await client.idle()
  t.strictSame(
    (await client.listCheckpoints('vm1')).map(({ name }) => name),
    ['first', 'third'],
  )
})

t.test('a cancel after the commit point has no effect', async (t) => {
  const { runDirectory } = await start(t)
  const client = createClient({ runDirectory, checkpointDirectory: scratch(t) })
  const controller = new AbortController()
  const onProgress = ({ phase }: { phase: string }) => {
    if (phase === 'publishing') setImmediate(() => controller.abort())
  }
  t.match(await client.createCheckpoint('vm1', { signal: controller.signal, onProgress }), {
    name: 'checkpoint',
  })
})

t.test('disposal of a client waits for cancelled calls too', async (t) => {
  const { runDirectory } = await start(t, { memoryBytes: 4 * MiB, writeRate: 8 * MiB })
  const checkpointDirectory = scratch(t)
  const client = createClient({ runDirectory, checkpointDirectory })
  const controller = new AbortController()
  const onProgress = ({ phase }: { phase: string }) => phase === 'saving' && controller.abort()
  const call = client.createCheckpoint('vm1', { signal: controller.signal, onProgress })
  t.ok((await call.catch((reason: unknown) => reason)) instanceof AbortError)
  t.not(
    checkpointFiles(path.join(checkpointDirectory, 'vm1')).length,
    0,
    'bhyve continues to write to its stage',
  )
  await client[Symbol.asyncDispose]()
  t.strictSame(tree(checkpointDirectory), [])
  t.equal(loadNative().ownedDescriptors(), 0)
})

t.test('after a cancel a program stays alive until bhyve has finished, then exits', async (t) => {
  for (const dialect of ['descriptor', 'reply'] as const) {
    for (const how of ['abort', 'timeout'] as const) {
      const bhyve = await start(t, { dialect, memoryBytes: 4 * MiB, writeRate: 8 * MiB })
      const checkpointDirectory = scratch(t)
      const ended = await runScript('cancelled.mjs', [bhyve.runDirectory, checkpointDirectory, how])
      t.match(ended, { code: 0, signal: null, stderr: '' }, `${dialect} ${how}`)
      t.match(ended.stdout, how === 'abort' ? 'AbortError ABORT_ERR enough' : 'CheckpointError ERR_TIMEOUT')
      t.strictSame(tree(checkpointDirectory), [], 'nothing left')
      const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory })
      t.match(await client.createCheckpoint('vm1'), { name: 'checkpoint' }, `${dialect} ${how}: the VM runs`)
    }
  }
})

t.test('Workers that are terminated during a call leave nothing behind', async (t) => {
  await terminateWorkers(t, ['saving', 'publishing'], 3)
})

t.test('two hundred VMs are saved at once with one libuv thread', async (t) => {
  const ended = await runScript('two-hundred.mjs', [scratch(t), '200'], { UV_THREADPOOL_SIZE: '1' })
  t.match(ended, { code: 0, signal: null, stderr: '' })
  const outcome = JSON.parse(ended.stdout) as Record<string, unknown>
  t.match(outcome, { fulfilled: 200, complete: 200, leaked: 0 })
  t.strictSame(outcome.reasons, [])
  t.ok((outcome.served as number) > 20, 'the host program was not blocked meanwhile')
})

t.test('idle threads end', async (t) => {
  const before = openDescriptors()
  const client = createClient({ checkpointDirectory: scratch(t) })
  await Promise.all(['a', 'b', 'c', 'd'].map((vm) => client.listCheckpoints(vm)))
  t.ok(openDescriptors() > before)
  await until(() => openDescriptors() <= before, 'the descriptors of the threads')
  t.strictSame(await client.listCheckpoints('a'), [], 'a later call starts a thread again')
})
