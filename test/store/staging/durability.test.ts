/** Tests of whether content is certain: after a reboot, without a boot identity, and after a failed fsync. */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { jobs } from '../../../dist/worker/jobs.js'
import { failure, intercept, rejection, scratch } from '../../support/index.js'
import { changeManifest, manifestOf, memoryBytes } from '../../support/sets.js'
import { MadeStage, store, list, assertRam } from '../../support/stages.js'

const unproven = [{ state: 'damaged', poweredOff: true, problems: [{ code: 'durability-unproven' }] }]

t.test('recovery: after a reboot, files that were not fsynced are kept as unproven', async (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  // ext4 with data=writeback, or UFS, may leave the size without the content.
  fs.truncateSync(stage.file('in/ckp'), 0)
  fs.truncateSync(stage.file('in/ckp'), memoryBytes)
  stage.reboot()
  const client = createClient({ checkpointDirectory: path.dirname(directory) })
  t.equal(await client.suspendedCheckpoint('vm1'), undefined)
  const [kept, ...others] = await client.listCheckpoints('vm1')
  t.match([kept], unproven)
  t.strictSame(others, [])
  const { name } = kept!
  t.match(await rejection(client.getCheckpoint('vm1', name)), { code: 'ERR_CHECKPOINT_DAMAGED' })
  const { removed } = await client.pruneCheckpoints('vm1', { keepLast: 0 })
  t.strictSame(removed, [], 'it may be the only copy, and good')

  const args = ['-c', '2', '-m', '4M', '-s', '0,hostbridge', 'vm1']
  const plan = (again: boolean) => client.planRestore('vm1', name, { args, again })
  t.match((await plan(false)).blockers, [{ code: 'damaged', message: /fsynced.*again/ }])
  const overridden = await plan(true)
  t.notOk(overridden.blockers.some(({ code }) => code === 'damaged'))
  t.ok(overridden.warnings.some(({ code }) => code === 'not-verified'))
})

t.test('restore: starts an unproven checkpoint only with again: true', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 1024 * 1024 })
  t.teardown(() => bhyve.stop())
  const root = scratch(t)
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: root })
  const { simulatedBhyve } = await import('bhyve-checkpoint/simulator')
  await client.suspend('vm1')
  changeManifest(path.join(root, 'vm1'), 'suspend', { durability: 'unproven' })
  const args = ['-o', `rundir=${bhyve.runDirectory}`, '-c', '1', '-m', '1M', 'vm1']
  const options = { args, bhyve: simulatedBhyve }
  t.match(await rejection(client.restore('vm1', 'suspend', options)), {
    code: 'ERR_RESTORE_BLOCKED',
    blockers: [{ code: 'damaged' }],
  })
  const devices = (await client.listCheckpoints('vm1'))[0]!.devices!
  const slots = devices.filter((device) => device.includes('@')).flatMap(slotOf)
  const restored = await client.restore('vm1', 'suspend', {
    ...options,
    args: [...args.slice(0, -1), ...slots, 'vm1'],
    again: true,
  })
  t.teardown(() => process.kill(restored.pid, 'SIGKILL'))
  t.match(manifestOf(path.join(root, 'vm1'), 'suspend'), { restores: [{ served: true, again: true }] })
})

function slotOf(device: string): string[] {
  const [emulation, slot] = device.split('@pci.')
  return ['-s', `${slot!.replace(/\./g, ':')},${emulation!}`]
}

t.test('recovery: publishes files that were fsynced before the reboot', async (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  jobs.collectStage(stage.handle, 'suspend')
  jobs.flushStage(stage.handle, 'suspend')
  stage.reboot()
  t.match(list(directory), [{ name: 'suspend', state: 'complete', poweredOff: true }])
  assertRam(t, directory, 'suspend')
})

t.test('recovery: after a reboot without the record of an fsync, digests prove the content', async (t) => {
  const directory = store(t)
  const good = new MadeStage(directory)
  good.prepare()
  good.reboot()
  t.match(list(directory), [{ name: 'suspend', state: 'complete' }])
  t.match(jobs.suspendedState(directory, 'vm1', 0), { checkpoint: { name: 'suspend' } })

  for (const file of ['suspend.ckp', 'suspend.ckp.kern']) {
    const bad = new MadeStage(directory)
    bad.prepare()
    const size = fs.statSync(bad.file(file)).size
    fs.truncateSync(bad.file(file), 0)
    fs.truncateSync(bad.file(file), size)
    bad.reboot()
    const damaged = list(directory).filter(({ state }) => state === 'damaged')
    t.match(damaged, unproven, `zeros in ${file}`)
    jobs.destroyCheckpoint(directory, damaged[0]!.name)
  }
})

t.test('recovery: digests that were not fsynced are not published', async (t) => {
  const directory = store(t)
  const torn = new MadeStage(directory)
  torn.prepare(() => jobs.flushStage(torn.handle, 'suspend'))
  const manifest = torn.file('suspend.ckp.manifest')
  const text = fs.readFileSync(manifest)
  fs.writeFileSync(manifest, text.fill(0, text.length - 100, text.length - 50))
  torn.reboot()
  t.match(list(directory), [{ name: 'suspend', state: 'complete' }])
  const client = createClient({ checkpointDirectory: path.dirname(directory) })
  t.match(await client.verifyCheckpoint('vm1', 'suspend', { depth: 'content' }), {
    ok: true,
    depth: 'structure',
  })

  const stale = new MadeStage(directory)
  stale.prepare(() => jobs.flushStage(stale.handle, 'suspend'))
  fs.writeFileSync(stale.file('digests'), Buffer.alloc(512))
  stale.reboot()
  list(directory)
  t.match(await client.verifyCheckpoint('vm1', 'suspend', { depth: 'content' }), {
    ok: true,
    depth: 'content',
  })
})

t.test('recovery: in the same boot, fsyncs and publishes a complete checkpoint', async (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  stage.release()
  const synced: string[] = []
  intercept(t, 'sync', (descriptor) => {
    synced.push(path.basename(fs.readlinkSync(`/proc/self/fd/${String(descriptor)}`)))
    return undefined
  })
  t.match(list(directory), [{ name: 'suspend', state: 'complete' }])
  const id = path.basename(stage.path)
  const files = ['suspend.ckp.kern', 'suspend.ckp.meta', 'in', id, 'suspend.ckp', 'synced', id]
  const commit = ['manifest.new', id, '.staging', 'vm1', `${id}.ready`, '.staging']
  t.strictSame(synced, [...files, ...commit])
})

t.test('recovery: without a boot identity, only fsynced files are published as complete', async (t) => {
  intercept(t, 'bootIdentity', () => failure('ENOENT', 'sysctlbyname'))
  const directory = store(t)
  const stage = new MadeStage(directory)
  stage.release()
  t.match(list(directory), unproven)
  const secured = new MadeStage(directory)
  jobs.collectStage(secured.handle, 'suspend')
  jobs.flushStage(secured.handle, 'suspend')
  secured.release()
  t.match(list(directory).at(-1), { name: 'suspend', state: 'complete' })
})

t.test('an unproven checkpoint remains unproven if its times or small files change', async (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  stage.prepare()
  const kernel = stage.file('suspend.ckp.kern')
  fs.writeFileSync(kernel, Buffer.alloc(fs.statSync(kernel).size))
  fs.utimesSync(stage.file('suspend.ckp'), 1, 1)
  stage.reboot()
  t.match(list(directory), unproven)
  fs.utimesSync(path.join(directory, `${list(directory)[0]!.name}.ckp`), 2, 2)
  t.match(list(directory), unproven)
})

t.test('recovery: after a failed fsync, publishes a copy of the files', async (t) => {
  for (const file of ['suspend.ckp', 'suspend.ckp.kern', 'suspend.ckp.meta']) {
    const directory = store(t)
    const stage = new MadeStage(directory)
    jobs.collectStage(stage.handle, 'suspend')
    const restore = intercept(t, 'sync', (descriptor) => {
      const isIt = fs.readlinkSync(`/proc/self/fd/${String(descriptor)}`).endsWith(`/${file}`)
      return isIt ? failure('EIO', 'fsync') : undefined
    })
    t.throws(() => jobs.flushStage(stage.handle, 'suspend'), { code: 'ERR_SYSTEM', syscall: 'fsync' })
    stage.release()
    t.strictSame(list(directory), [], `${file}: nothing is published while the disk fails`)
    restore()
    const suspect = fs.statSync(stage.file(file)).ino
    t.match(list(directory), [{ name: 'suspend', state: 'complete' }], file)
    t.not(fs.statSync(path.join(directory, file)).ino, suspect, `${file} is a new file`)
    assertRam(t, directory, 'suspend')
  }
})

t.test('recovery: after a failed fsync, the copy must have the digests in the manifest', async (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  let restore: (() => void) | undefined
  const secureThenFail = (): void => {
    jobs.flushStage(stage.handle, 'suspend')
    restore = intercept(t, 'sync', (descriptor) => {
      const target = fs.readlinkSync(`/proc/self/fd/${String(descriptor)}`)
      return target.endsWith('/suspend.ckp') ? failure('EIO', 'fsync') : undefined
    })
  }
  t.throws(() => stage.prepare(secureThenFail), { code: 'ERR_SYSTEM', syscall: 'fsync' })
  restore?.()
  // Simulate pages that did not reach the disk: they are read with other content.
  const descriptor = fs.openSync(stage.file('suspend.ckp'), 'r+')
  const { mtime } = fs.fstatSync(descriptor)
  fs.writeSync(descriptor, Buffer.alloc(4096), 0, 4096, 8192)
  fs.futimesSync(descriptor, mtime, mtime)
  fs.closeSync(descriptor)
  stage.release()
  // A recovery that is interrupted after the copy must not lose the record of the failed fsync.
  const interrupted = intercept(t, 'renameAt', (_, __, ___, to) =>
    to === 'intent' ? failure('EIO', 'renameat') : undefined,
  )
  t.strictSame(list(directory), [])
  interrupted()
  t.match(list(directory), unproven)
  t.match(jobs.suspendedState(directory, 'vm1', 0), { kind: 'known', checkpoint: undefined })
})

t.test('recovery: after a failed fsync and a reboot, the checkpoint is unproven', async (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  jobs.collectStage(stage.handle, 'suspend')
  const restore = intercept(t, 'sync', (descriptor) => {
    const target = fs.readlinkSync(`/proc/self/fd/${String(descriptor)}`)
    return target.endsWith('/suspend.ckp') ? failure('EIO', 'fsync') : undefined
  })
  t.throws(() => jobs.flushStage(stage.handle, 'suspend'), { code: 'ERR_SYSTEM', syscall: 'fsync' })
  restore()
  stage.reboot()
  t.match(list(directory), unproven)
})

t.test('recovery: after a reboot, a torn manifest proves no content', async (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  stage.prepare()
  fs.truncateSync(stage.file('suspend.ckp.manifest'), 20)
  stage.reboot()
  t.match(list(directory), unproven)
})

t.test('flushMemory: records a failed fsync, but not a file that cannot be opened', (t) => {
  const stage = new MadeStage(store(t), { poweroff: false, name: 'live' })
  jobs.collectStage(stage.handle, 'live')
  const unopened = intercept(t, 'openAt', () => failure('EMFILE', 'openat'))
  jobs.flushMemory(stage.handle, 'live')
  unopened()
  t.notOk(fs.existsSync(stage.file('sync-failed')))
  const unsynced = intercept(t, 'sync', () => failure('EIO', 'fsync'))
  t.throws(() => jobs.flushMemory(stage.handle, 'live'), { code: 'ERR_SYSTEM', syscall: 'fsync' })
  unsynced()
  t.ok(fs.existsSync(stage.file('sync-failed')), 'recovery must not trust a later fsync')
  stage.release()
  t.end()
})
