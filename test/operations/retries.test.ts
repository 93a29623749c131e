/** Calls that are repeated: a name that is taken, and time limits by a signal. */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import t from 'tap'
import { createClient, type Progress } from 'bhyve-checkpoint'
import { rejection, scratch, tree } from '../support/index.js'
import { systemError } from '../../dist/base/errors.js'
import { createClientIn } from '../../dist/client/client.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { start, watchedPool } from '../support/suspending.js'

const MiB = 1024 * 1024

t.test('ifExists fail: the error has the id and the labels of what is there', async (t) => {
  const { client, directory } = await start(t)
  const labels = { request: 'r1' }
  const { id } = await client.createCheckpoint('vm1', { ifExists: 'fail', labels })
  const error = await rejection(client.createCheckpoint('vm1', { ifExists: 'fail' }))
  t.match(error, { code: 'ERR_CHECKPOINT_EXISTS', retryable: false, vm: 'vm1' })
  t.strictSame(error.existing, { id, labels })
  t.strictSame(error.toJSON().existing, { id, labels })
  const kernel = path.join(directory, 'checkpoint.ckp.kern')
  fs.renameSync(kernel, `${kernel}.away`)
  const unusable = await rejection(client.createCheckpoint('vm1', { ifExists: 'fail', labels }))
  t.notOk('existing' in unusable, 'a damaged checkpoint does not fulfil the request')
  fs.renameSync(`${kernel}.away`, kernel)
  fs.rmSync(path.join(directory, 'checkpoint.ckp.manifest'))
  const bare = await rejection(client.createCheckpoint('vm1', { ifExists: 'fail' }))
  t.strictSame(bare.existing, { id: (await client.getCheckpoint('vm1', 'checkpoint')).id, labels: {} })
  fs.rmSync(path.join(directory, 'checkpoint.ckp.kern'))
  const damaged = await rejection(client.createCheckpoint('vm1', { ifExists: 'fail' }))
  t.match(damaged, { code: 'ERR_CHECKPOINT_EXISTS' })
  t.notOk('existing' in damaged, 'a damaged checkpoint without a manifest has no id')
  fs.writeFileSync(path.join(directory, 'foreign.ckp'), 'BHYVE-CHECKPOINT-MANIFEST-1\n')
  const foreign = await rejection(client.createCheckpoint('vm1', { name: 'foreign' }))
  t.match(foreign, { code: 'ERR_CHECKPOINT_EXISTS' })
  t.notOk('existing' in foreign)
})

t.test('ifExists fail: the error is the same if the VM has ended since', async (t) => {
  const { bhyve, client, root } = await start(t)
  const once = { ifExists: 'fail', labels: { request: 'r1' } } as const
  const { id, labels } = await client.suspend('vm1', once)
  const existing = { id, labels }
  t.match(await rejection(client.suspend('vm1', once)), { code: 'ERR_CHECKPOINT_EXISTS', existing })
  // As after a reboot, which empties the run directory.
  fs.rmSync(path.join(bhyve.runDirectory, 'vm1'))
  t.match(await rejection(client.suspend('vm1', once)), { code: 'ERR_CHECKPOINT_EXISTS', existing })
  const created = client.createCheckpoint('vm1', { ...once, name: 'suspend' })
  t.match(await rejection(created), { code: 'ERR_CHECKPOINT_EXISTS', existing })
  const other = { ...once, name: 'other' }
  t.match(await rejection(client.suspend('vm1', other)), { code: 'ERR_VM_NOT_RUNNING' }, 'a free name')
  t.match(await rejection(client.suspend('vm2', once)), { code: 'ERR_VM_NOT_RUNNING' }, 'no directory')
  t.same(fs.readdirSync(root), ['vm1'], 'nothing is created')
})

t.test('ifExists fail: also if another manager takes the name while bhyve saves', async (t) => {
  const { bhyve, client, root, directory } = await start(t)
  const other = scratch(t)
  const winner = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: other })
  const labels = { request: 'theirs' }
  const { id } = await winner.createCheckpoint('vm1', { labels })
  const onProgress = ({ phase }: Progress): void => {
    if (phase !== 'publishing') return
    for (const file of fs
      .readdirSync(path.join(other, 'vm1'))
      .filter((name) => name.startsWith('checkpoint')))
      fs.copyFileSync(path.join(other, 'vm1', file), path.join(directory, file))
  }
  const options = { ifExists: 'fail', labels: { request: 'ours' }, onProgress } as const
  const error = await rejection(client.createCheckpoint('vm1', options))
  t.match(error, { code: 'ERR_CHECKPOINT_EXISTS', existing: { id, labels } })
  await client.idle()
  t.notOk(
    tree(root).some((entry) => entry.includes('.staging/')),
    'the loser leaves nothing',
  )
  // The state of a suspended VM is kept under another name.
  fs.readdirSync(directory).forEach((file) => fs.rmSync(path.join(directory, file), { recursive: true }))
  const suspended = await rejection(client.suspend('vm1', { ...options, name: 'checkpoint' }))
  t.match(suspended, { code: 'ERR_CHECKPOINT_EXISTS', existing: { id, labels }, path: /checkpoint-/ })
  t.match(await client.suspendedCheckpoint('vm1'), { name: /^checkpoint-/, labels: { request: 'ours' } })
})

t.test('a signal of AbortSignal.timeout() is a timeout', async (t) => {
  const { client } = await start(t, { memoryBytes: 4 * MiB, writeRate: 16 * MiB })
  const early = await rejection(client.createCheckpoint('vm1', { signal: abortedByTime() }))
  t.match(early, { code: 'ERR_TIMEOUT', begun: false, retryable: false, vm: 'vm1' })
  const begun = await rejection(client.createCheckpoint('vm1', duringSave()))
  t.match(begun, { code: 'ERR_TIMEOUT', begun: true, retryable: false, cause: { name: 'TimeoutError' } })
  await client.idle()
  const signal = AbortSignal.any([AbortSignal.timeout(100), new AbortController().signal])
  t.match(await rejection(client.createCheckpoint('vm1', { signal })), { code: 'ERR_TIMEOUT', begun: true })
  await client.idle()
  t.match(
    await rejection(client.verifyCheckpoint('vm1', 'a', { signal: abortedByTime() })),
    { code: 'ERR_TIMEOUT', begun: false, retryable: false },
    'verify',
  )
  const restoring = { args: ['vm1'], signal: abortedByTime() }
  t.match(
    await rejection(client.restore('vm1', 'a', restoring)),
    { code: 'ERR_TIMEOUT', begun: false, retryable: false },
    'restore',
  )
  const suspending = await rejection(client.suspend('vm1', duringSave()))
  t.match(suspending, { code: 'ERR_TIMEOUT', begun: true, retryable: false }, 'the VM will be off')
  await client.idle()
  t.match(await client.suspendedCheckpoint('vm1'), { name: 'suspend' })
})

t.test('a program that repeats retryable calls stops at the time limit of its signal', async (t) => {
  const { client } = await start(t)
  const options = { signal: abortedByTime() }
  let attempts = 0
  for (let retryable = true; retryable && attempts < 100; attempts++)
    ({ retryable } = await rejection(client.createCheckpoint('vm1', options)))
  t.equal(attempts, 1)
})

t.test('a suspend that fails after bhyve has saved the VM cannot be repeated', async (t) => {
  const { bhyve, root } = await start(t)
  const { EMFILE } = os.constants.errno
  const pool = watchedPool((name) => {
    if (name === 'commitStage') throw systemError({ errno: EMFILE, syscall: 'openat' }, 'Publishing')
  })
  const { runDirectory } = bhyve
  const client = createClientIn({ ...hostEnvironment, pool }, { runDirectory, checkpointDirectory: root })
  const error = await rejection(client.suspend('vm1'))
  t.match(error, { code: 'ERR_SYSTEM', errno: EMFILE, retryable: false })
  t.match(await client.suspendedCheckpoint('vm1'), { name: 'suspend' })
})

const timeUp = new DOMException('The operation timed out', 'TimeoutError')

/** As a signal of AbortSignal.timeout() whose time is up. */
function abortedByTime(): AbortSignal {
  return AbortSignal.abort(timeUp)
}

function duringSave(): { signal: AbortSignal; onProgress: (progress: Progress) => void } {
  const controller = new AbortController()
  const onProgress = ({ phase }: Progress): void => {
    if (phase === 'saving') controller.abort(timeUp)
  }
  return { signal: controller.signal, onProgress }
}
