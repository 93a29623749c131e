/** Tests of the recovery of files in the memory stage when the disk fails: nothing unproven is published as complete. */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import t, { type Test } from 'tap'
import { createClient, type ListedCheckpoint } from 'bhyve-checkpoint'
import { loadNative } from '../../../dist/base/native.js'
import { jobs } from '../../../dist/worker/jobs.js'
import { mounted } from '../../support/image_world.js'
import { intercept, scratch } from '../../support/index.js'
import { Ledger, write } from '../../support/memory_ledger.js'
import { MadeStage, ram } from '../../support/stages.js'

const MiB = 1024 * 1024
const tmpfs = mounted(t, 'tmpfs', 64 * MiB)
const needsTmpfs = { skip: tmpfs.skip }
const native = loadNative()

interface Left {
  directory: string
  ledger: Ledger
  stage: MadeStage
  /** Its directory in the memory stage. */
  entry: string
}

/** The stage of a dead manager whose bhyve has ended and left a complete checkpoint in the memory stage. */
function leftInMemory(t: Test): Left {
  const ledger = new Ledger(t, tmpfs.directory)
  const stage = ledger.stage()
  const admission = ledger.enter(stage, 9 * MiB)
  if (admission.kind !== 'admitted') throw new Error(admission.kind)
  write(stage, admission)
  return { directory: path.join(ledger.store, 'vm1'), ledger, stage, entry: admission.path }
}

/** What the manager had done when it died: the first half of the RAM was copied, and its memory was freed. */
function copyHalf(t: Test, stage: MadeStage, entry: string): void {
  jobs.collectStage(stage.handle, 'live')
  const request = { name: 'live', memoryBytes: ram.length, digest: true, sparsify: true, durable: true }
  jobs.beginScan(stage.handle, request)
  const half = ram.length / 2
  fs.writeFileSync(stage.file('live.ckp'), Buffer.concat([ram.subarray(0, half), Buffer.alloc(half)]))
  const descriptor = fs.openSync(path.join(entry, 'live.ckp'), 'r+')
  t.equal(native.punchHole(descriptor, 0, half), 0)
  fs.closeSync(descriptor)
}

/** Every fsync of a file of this size fails while `work` runs. */
function withoutSync(size: number, work: () => void): number {
  const sync = native.sync.bind(native)
  let failed = 0
  native.sync = (descriptor) => {
    if (fs.fstatSync(descriptor).size !== size) return sync(descriptor)
    failed++
    return { errno: os.constants.errno.EIO, syscall: 'fsync' }
  }
  try {
    work()
  } finally {
    native.sync = sync
  }
  return failed
}

function listed(directory: string): ListedCheckpoint[] {
  return jobs.listCheckpoints(directory, 'vm1')
}

t.test('recovery: the files stay in memory until the copy is on the disk', needsTmpfs, async (t) => {
  const { directory, ledger, stage, entry } = leftInMemory(t)
  ledger.release(stage)
  const failed = withoutSync(ram.length, () => t.strictSame(listed(directory), []))
  t.equal(failed, 1)
  t.ok(fs.existsSync(path.join(entry, 'live.ckp')), 'they are still in memory')
  // The system dropped what it could not write.
  fs.writeFileSync(stage.file('live.ckp'), Buffer.alloc(ram.length))
  const [kept] = listed(directory)
  t.match(kept, { state: 'complete', name: /^live-/ })
  t.ok(fs.readFileSync(path.join(directory, `${kept!.name}.ckp`)).equals(ram))
  const client = createClient({ checkpointDirectory: ledger.store })
  t.match(await client.verifyCheckpoint('vm1', kept!.name, { depth: 'content' }), { ok: true })
  t.notOk(fs.existsSync(entry))
})

t.test('recovery: a copy that was begun and not written to the disk is not complete', needsTmpfs, (t) => {
  const { directory, ledger, stage, entry } = leftInMemory(t)
  copyHalf(t, stage, entry)
  ledger.release(stage)
  t.equal(
    withoutSync(ram.length, () => t.strictSame(listed(directory), [])),
    1,
  )
  const [kept] = listed(directory)
  t.match(kept, { state: 'damaged', name: /^live-/, problems: [{ code: 'durability-unproven' }] })
  t.ok(fs.readFileSync(path.join(directory, `${kept!.name}.ckp`)).equals(ram), 'what there is was kept')
  t.notOk(fs.existsSync(entry))
  t.end()
})

t.test('recovery: a copy that was begun is continued', needsTmpfs, (t) => {
  const { directory, ledger, stage, entry } = leftInMemory(t)
  copyHalf(t, stage, entry)
  ledger.release(stage)
  const [kept] = listed(directory)
  t.match(kept, { state: 'complete', name: /^live-/ })
  t.ok(fs.readFileSync(path.join(directory, `${kept!.name}.ckp`)).equals(ram))
  t.end()
})

t.test('recovery: on the disk, too, files whose fsync has failed are not complete', (t) => {
  const directory = path.join(scratch(t), 'vm1')
  const stage = new MadeStage(directory, { poweroff: false, name: 'live' })
  stage.release()
  t.equal(
    withoutSync(ram.length, () => t.strictSame(listed(directory), [])),
    1,
  )
  t.match(listed(directory), [{ state: 'damaged', problems: [{ code: 'durability-unproven' }] }])
  t.end()
})

t.test('recovery: a held bhyve is continued although the memory stage is full', needsTmpfs, (t) => {
  const { directory, ledger, stage, entry } = leftInMemory(t)
  jobs.recordHold(stage.handle)
  const [openAt, signalProcess] = [native.openAt.bind(native), native.signalProcess.bind(native)]
  t.teardown(() => Object.assign(native, { openAt, signalProcess }))
  let signals = 0
  native.signalProcess = () => ++signals
  native.openAt = (parent, name, flags, mode) => {
    const isNew = (flags & fs.constants.O_CREAT) !== 0
    if (isNew && name === 'continued') return { errno: os.constants.errno.ENOSPC, syscall: 'openat' }
    return openAt(parent, name, flags, mode)
  }
  ledger.release(stage)
  t.match(listed(directory), [{ state: 'complete' }])
  t.equal(signals, 1)
  t.notOk(fs.existsSync(entry))
  t.end()
})

t.test('recovery: a disk that is full keeps the files in memory, and no part of a copy', needsTmpfs, (t) => {
  const { directory, ledger, stage, entry } = leftInMemory(t)
  ledger.release(stage)
  const { writeSync } = fs
  fs.writeSync = ((descriptor: number, ...rest: [NodeJS.ArrayBufferView]) => {
    if (fs.fstatSync(descriptor).size !== ram.length) return writeSync(descriptor, ...rest)
    const errno = -os.constants.errno.ENOSPC
    throw Object.assign(new Error('full'), { code: 'ENOSPC', errno, syscall: 'write' })
  }) as typeof fs.writeSync
  try {
    t.strictSame(listed(directory), [])
  } finally {
    fs.writeSync = writeSync
  }
  t.ok(fs.existsSync(path.join(entry, 'live.ckp')))
  t.notOk(fs.existsSync(stage.file('live.ckp')))
  t.match(listed(directory), [{ state: 'complete' }])
  t.end()
})

t.test('recovery: a copy that was begun is not overwritten if holes cannot be found', needsTmpfs, (t) => {
  const { directory, ledger, stage, entry } = leftInMemory(t)
  copyHalf(t, stage, entry)
  ledger.release(stage)
  const show = intercept(t, 'dataRange', () => ({ errno: os.constants.errno.EIO, syscall: 'lseek' }))
  t.strictSame(listed(directory), [])
  show()
  const [kept] = listed(directory)
  t.match(kept, { state: 'complete' })
  t.ok(fs.readFileSync(path.join(directory, `${kept!.name}.ckp`)).equals(ram))
  t.end()
})

t.test('recovery: the time of a checkpoint is that of the last write of bhyve', needsTmpfs, (t) => {
  const { directory, ledger, stage, entry } = leftInMemory(t)
  // utimes() can lose a part of a millisecond.
  const saved = new Date(Math.floor(Date.now() / 1000 - 60) * 1000)
  for (const file of ['ckp', 'ckp.kern', 'ckp.meta'])
    fs.utimesSync(path.join(entry, 'in', file), saved, saved)
  copyHalf(t, stage, entry)
  fs.utimesSync(path.join(entry, 'live.ckp'), new Date(), new Date())
  ledger.release(stage)
  const [kept] = listed(directory)
  t.equal(kept?.state === 'complete' && kept.createdAt.toISOString(), saved.toISOString())
  t.end()
})

t.test('recovery: a live stage stays while its records cannot be read', (t) => {
  for (const record of ['live', 'peer']) {
    const directory = path.join(scratch(t), 'vm1')
    const stage = new MadeStage(directory, { poweroff: false, name: 'live' })
    stage.release()
    const show = intercept(t, 'readStartAt', (_, name) =>
      name === record ? { errno: os.constants.errno.EIO, syscall: 'read' } : undefined,
    )
    t.strictSame(listed(directory), [], record)
    show()
    t.match(listed(directory), [{ state: 'complete', name: /^live-/ }], record)
  }
  t.end()
})
