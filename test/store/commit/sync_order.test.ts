/** Tests of the order of fsyncs and renames in a suspend, a pin, a restore, and a recovery. */
import { randomUUID } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { createClientIn } from '../../../dist/client/client.js'
import { isFailure, loadNative } from '../../../dist/base/native.js'
import { hostEnvironment } from '../../../dist/client/environment.js'
import { jobs } from '../../../dist/worker/jobs.js'
import { failure, inlinePool, intercept, scratch } from '../../support/index.js'
import { manifestOf, memoryBytes, putSet } from '../../support/sets.js'
import { MadeStage, store, list } from '../../support/stages.js'

const native = loadNative()

t.test('roll forward: fsyncs the directories that the files came from', async (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  stage.prepare()
  const synced: string[] = []
  intercept(t, 'sync', (descriptor) => {
    synced.push(fs.readlinkSync(`/proc/self/fd/${String(descriptor)}`).replace(directory, 'D'))
    return undefined
  })
  const manifest = manifestOf(stage.path, 'suspend') as never
  jobs.commitStage(stage.handle, { name: 'suspend', ifExists: 'replace', durable: true, manifest })
  const ready = `D/.staging/${path.basename(stage.path)}.ready`
  t.strictSame(synced, ['D/.staging', 'D', ready, 'D/.staging'])
  stage.release()
})

/** Publishes a live checkpoint, and returns the directories that were fsynced, from the creation of its stage on. */
function syncedByLive(t: Test, directory: string, durable: boolean): string[] {
  const order = recordOrder(t, directory)
  const stage = new MadeStage(directory, { poweroff: false })
  const syncs = order.splice(0).filter((call) => call.startsWith('sync '))
  t.strictSame(syncs, ['sync .'], 'the new directory .staging, and not the stage')
  stage.prepare()
  order.splice(0)
  const manifest = { ...manifestOf(stage.path, 'suspend'), poweredOff: false } as never
  jobs.commitStage(stage.handle, { name: 'suspend', ifExists: 'replace', durable, manifest })
  stage.release()
  t.match(list(directory), [{ name: 'suspend', state: 'complete' }])
  return order.filter((call) => call.startsWith('sync '))
}

t.test('live checkpoint: fsyncs the commit and the directories of its files', async (t) => {
  t.strictSame(syncedByLive(t, store(t), true), ['sync .staging', 'sync .', 'sync .staging/ID.ready'])
})

t.test('live checkpoint: with fsync: false, its names are durable together', async (t) => {
  t.strictSame(syncedByLive(t, store(t), false), ['sync .', 'sync .staging/ID.ready'])
})

t.test(
  'live checkpoint: the removal of a checkpoint with disk snapshots is durable in any case',
  async (t) => {
    const directory = store(t)
    const disks = [{ kind: 'file', disks: [{ path: '/disk', snapshot: 'one' }] }]
    putSet(directory, 'suspend', { manifest: { id: randomUUID(), version: 2, disks } })
    t.strictSame(syncedByLive(t, directory, false), [
      ...['sync .staging/ID.ready', 'sync .', 'sync .staging/ID.ready'],
      ...['sync .staging/ID.ready/snapshots.new', 'sync .staging'],
    ])
  },
)

t.test('suspend: after EIO from any fsync, recovery publishes the state in new files', async (t) => {
  for (let at = 1, hasFailed = true; hasFailed; at++) {
    const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 1024 * 1024 })
    const root = scratch(t)
    const client = createClientIn(
      { ...hostEnvironment, pool: () => inlinePool() },
      { runDirectory: bhyve.runDirectory, checkpointDirectory: root },
    )
    let count = 0
    const restore = intercept(t, 'sync', () => (++count === at ? failure('EIO', 'fsync') : undefined))
    const outcome = await client.suspend('vm1').then(
      () => 'resolved',
      (error: unknown) => (error as { code: string }).code,
    )
    restore()
    hasFailed = count >= at
    await client.idle()
    const listed = await client.listCheckpoints('vm1')
    const isSuspended = outcome === 'resolved' || listed.length > 0
    if (isSuspended) {
      t.match(listed, [{ state: 'complete', poweredOff: true }], `fsync ${String(at)}: ${outcome}`)
      const report = await client.verifyCheckpoint('vm1', listed[0]!.name, { depth: 'content' })
      t.ok(report.ok)
    } else {
      const status = native.processStatus(bhyve.pid)
      t.ok(!isFailure(status) && status.state === 'running', `fsync ${String(at)}: the VM runs on`)
    }
    await bhyve.stop()
  }
})

/**
 * Records each fsync and each rename of this thread, with paths relative to the VM's directory. `ID` stands for a
 * stage.
 */
function recordOrder(t: Test, directory: string): string[] {
  const order: string[] = []
  const shown = (descriptor: unknown, name = ''): string => {
    const where = fs.readlinkSync(`/proc/self/fd/${String(descriptor)}`)
    const below = path.relative(fs.realpathSync(directory), path.join(where, name))
    return (below === '' ? '.' : below).replace(/^\.staging\/[0-9a-z]{1,12}(?=[/.]|$)/, '.staging/ID')
  }
  intercept(t, 'sync', (descriptor) => void order.push(`sync ${shown(descriptor)}`))
  intercept(t, 'renameAt', (from, name, to, toName) => {
    order.push(`rename ${shown(from, String(name))} -> ${shown(to, String(toName))}`)
  })
  return order
}

const commit = ['rename .staging/ID -> .staging/ID.ready', 'sync .staging']

t.test('suspend: its records are durable before it sends, even with fsync: false', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 1024 * 1024 })
  t.teardown(() => bhyve.stop())
  const root = scratch(t)
  const directory = path.join(root, 'vm1')
  fs.mkdirSync(directory)
  const client = createClientIn(
    { ...hostEnvironment, pool: () => inlinePool() },
    { runDirectory: bhyve.runDirectory, checkpointDirectory: root, dialect: 'descriptor' },
  )
  const order = recordOrder(t, directory)
  intercept(t, 'send', () => void order.push('send'))
  await client.suspend('vm1', { fsync: false })
  t.strictSame(order.slice(0, order.indexOf('send')), [
    'sync .',
    'sync .staging/ID/intent',
    'sync .staging/ID',
    'sync .staging',
    'sync .staging/ID/peer.new',
    'rename .staging/ID/peer.new -> .staging/ID/peer',
  ])
})

t.test('scan: without sparsify, opens the RAM file for reading only and does not fsync', (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  jobs.collectStage(stage.handle, 'suspend')
  const modes = new Set<number>()
  intercept(t, 'openAt', (_, name, flags) => {
    if (name === 'suspend.ckp') modes.add(Number(flags) & 3)
  })
  const order = recordOrder(t, directory)
  const request = { name: 'suspend', memoryBytes, digest: true, sparsify: false, durable: false }
  t.match(jobs.scanAtOnce(stage.handle, request, new Int32Array(1)), { digests: {} })
  t.strictSame([...modes], [fs.constants.O_RDONLY])
  t.strictSame(order, [])
  stage.release()
  t.end()
})

t.test('commit: the pin of a replaced checkpoint is durable before the commit point', async (t) => {
  const directory = store(t)
  putSet(directory, 'suspend', { manifest: { pinned: true } })
  const stage = new MadeStage(directory)
  stage.prepare()
  const manifest = manifestOf(stage.path, 'suspend') as never
  const order = recordOrder(t, directory)
  jobs.commitStage(stage.handle, { name: 'suspend', ifExists: 'replace', durable: true, manifest })
  t.strictSame(order.slice(0, 5), [
    'sync .staging/ID/pin',
    'rename .staging/ID/pin -> .staging/ID/suspend.ckp.manifest',
    'sync .staging/ID',
    ...commit,
  ])
  stage.release()
})

t.test('roll forward: a replaced manifest with disk snapshots is durable before the new one', async (t) => {
  for (const isMoved of [false, true]) {
    const directory = store(t)
    const disks = [{ kind: 'other', disks: [{ path: '/disk', snapshot: '/snapshot' }] }]
    putSet(directory, 'suspend', { manifest: { version: 2, id: randomUUID(), disks } })
    const stage = new MadeStage(directory)
    stage.prepare()
    const manifest = manifestOf(stage.path, 'suspend') as never
    if (isMoved)
      fs.renameSync(path.join(directory, 'suspend.ckp.manifest'), path.join(stage.path, 'replaced.manifest'))
    const order = recordOrder(t, directory)
    jobs.commitStage(stage.handle, { name: 'suspend', ifExists: 'replace', durable: true, manifest })
    const ready = '.staging/ID.ready'
    const aside = isMoved ? [] : [`rename suspend.ckp.manifest -> ${ready}/replaced.manifest`]
    const at = order.indexOf(commit[0]!) + commit.length
    t.strictSame(order.slice(at, at + aside.length + 2), [
      ...aside,
      `sync ${ready}`,
      `rename suspend.ckp -> ${ready}/replaced`,
    ])
    stage.release()
  }
})

t.test('pin, restore: the manifest is durable when the call ends', async (t) => {
  const directory = store(t)
  putSet(directory, 'x')
  const { identity } = jobs.inspectForRestore(directory, 'vm1', 'x')
  const record = { at: new Date().toISOString(), again: false }
  const calls: Record<string, () => unknown> = {
    pin: () => jobs.pinCheckpoint(directory, 'vm1', 'x', true),
    record: () => jobs.recordRestore(directory, 'vm1', 'x', identity, record),
    confirm: () => jobs.confirmRestore(directory, 'x', record),
    revoke: () => jobs.revokeRestore(directory, 'x', record),
  }
  const order = recordOrder(t, directory)
  for (const [what, call] of Object.entries(calls)) {
    order.length = 0
    call()
    const file = 'x.ckp.manifest'
    const steps = [`sync .staging/ID/${file}`, `rename .staging/ID/${file} -> ${file}`, 'sync .']
    t.strictSame(order.slice(-3), steps, what)
  }
})

t.test('recovery: a checkpoint under a fresh name is durable before it gets that name', async (t) => {
  for (const poweroff of [true, false]) {
    const directory = store(t)
    const stage = new MadeStage(directory, { poweroff })
    // Recovery keeps everything of a suspended VM, but only a complete checkpoint of a VM that ran on.
    if (poweroff) {
      fs.rmSync(stage.file('in/ckp.meta'))
      fs.symlinkSync('/nonexistent', stage.file('in/ckp.meta'))
    }
    stage.release()
    const order = recordOrder(t, directory)
    const [kept, ...others] = list(directory)
    t.match(kept, { name: /^suspend-/, poweredOff: poweroff, state: poweroff ? 'damaged' : 'complete' })
    t.strictSame(others, [])
    const file = `.staging/ID/${kept!.name}.ckp`
    const at = order.indexOf(commit[0]!)
    const synced = ['.kern', '.manifest', ''].map((ending) => `sync ${file}${ending}`)
    const manifest = ['sync .staging/ID/manifest.new', `rename .staging/ID/manifest.new -> ${file}.manifest`]
    const last = [...(poweroff ? synced : manifest), 'sync .staging/ID', ...commit]
    t.strictSame(order.slice(at + 2 - last.length, at + 2), last, kept!.name)
    if (!poweroff) {
      const renamed = order.indexOf(`rename .staging/ID/suspend.ckp -> ${file}`)
      const content = order.slice(0, renamed).filter((step) => /^sync .*\/suspend\.ckp/.test(step))
      t.strictSame(
        content,
        ['.kern', '.meta', ''].map((ending) => `sync .staging/ID/suspend.ckp${ending}`),
      )
    }
    t.equal(order.slice(0, at).includes(`sync ${file}.rest`), poweroff, 'unexpected files are durable, too')
  }
})

t.test('recovery: the copy of a file with a second name is durable before its rename', async (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  fs.linkSync(stage.file('in/ckp'), path.join(scratch(t), 'other'))
  stage.release()
  const order = recordOrder(t, directory)
  t.match(list(directory), [{ name: 'suspend', state: 'complete' }])
  const at = order.indexOf('rename .staging/ID/copy -> .staging/ID/suspend.ckp')
  t.equal(order[at - 1], 'sync .staging/ID/copy')
})
