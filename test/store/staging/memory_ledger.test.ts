/** Tests of the ledger of the memory stage, and of what dead processes leave in it. */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import t from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { isFailure, loadNative } from '../../../dist/base/native.js'
import { jobs } from '../../../dist/worker/jobs.js'
import { mounted } from '../../support/image_world.js'
import { tree } from '../../support/index.js'
import { Ledger, write } from '../../support/memory_ledger.js'
import { type MadeStage, nobody } from '../../support/stages.js'

const MiB = 1024 * 1024
const tmpfs = mounted(t, 'tmpfs', 2 ** 40)
const needsTmpfs = { skip: tmpfs.skip }
const native = loadNative()

/** A stage whose owner has died, with a complete checkpoint in the memory stage. */
function leftIn(ledger: Ledger): MadeStage {
  const stage = ledger.stage()
  write(stage, ledger.enter(stage, 9 * MiB))
  ledger.release(stage)
  return stage
}

t.test('memory stage: the RAM of all stages is counted', needsTmpfs, (t) => {
  const ledger = new Ledger(t, tmpfs.directory)
  const [first, second, third] = [ledger.stage(), ledger.stage('vm2'), ledger.stage('vm3')]
  t.match(ledger.enter(first, 6 * MiB, 10 * MiB), { kind: 'admitted' })
  t.match(ledger.enter(second, 5 * MiB, 10 * MiB), { kind: 'refused', reason: 'memory-stage-full' })
  t.match(ledger.enter(third, 4 * MiB, 10 * MiB), { kind: 'admitted' })
  jobs.abandonStage(first.handle, [])
  t.match(ledger.enter(second, 5 * MiB, 10 * MiB), { kind: 'admitted' }, 'there is room again')
  jobs.abandonStage(second.handle, [])
  jobs.abandonStage(third.handle, [])
  t.strictSame(tree(ledger.directory), [])
  t.end()
})

t.test('memory stage: the host keeps memory, also from what others are about to write', needsTmpfs, (t) => {
  const ledger = new Ledger(t, tmpfs.directory)
  const [first, second] = [ledger.stage(), ledger.stage('vm2')]
  const reserve = Math.max(1024 ** 3, os.totalmem() / 10)
  const free = os.freemem() - reserve
  t.match(ledger.enter(first, Math.ceil(free * 1.2)), { kind: 'refused', reason: 'host-memory' })
  t.match(ledger.enter(first, Math.floor(free * 0.6)), { kind: 'admitted' })
  t.match(ledger.enter(second, Math.floor(free * 0.6)), { kind: 'refused', reason: 'host-memory' })
  jobs.abandonStage(first.handle, [])
  t.match(ledger.enter(second, Math.floor(free * 0.6)), { kind: 'admitted' })
  jobs.abandonStage(second.handle, [])
  t.end()
})

t.test('memory stage: the tmpfs itself can be too small', { skip: tmpfs.skip }, (t) => {
  const small = mounted(t, 'tmpfs', 8 * MiB)
  const ledger = new Ledger(t, tmpfs.directory)
  const stage = ledger.stage()
  const request = { directory: path.join(small.directory, 'm'), maxBytes: undefined, writerUid: 0 }
  const enter = (memoryBytes: number): unknown => jobs.enterMemory(stage.handle, { ...request, memoryBytes })
  t.match(enter(8 * MiB), { kind: 'refused', reason: 'memory-stage-full' })
  t.end()
})

t.test('memory stage: another process that holds the ledger', needsTmpfs, (t) => {
  const ledger = new Ledger(t, tmpfs.directory)
  const stage = ledger.stage()
  fs.mkdirSync(ledger.entries, { recursive: true, mode: 0o700 })
  const descriptor = native.openPath(ledger.entries, fs.constants.O_DIRECTORY) as number
  native.lock(descriptor, 'exclusive')
  t.throws(() => ledger.enter(stage, MiB), { code: 'ERR_CHECKPOINT_BUSY' })
  native.close(descriptor)
  t.match(ledger.enter(stage, MiB), { kind: 'admitted' })
  t.end()
})

t.test('memory stage: what a dead process left without a stage is removed', needsTmpfs, (t) => {
  const ledger = new Ledger(t, tmpfs.directory)
  const [first, second] = [ledger.stage(), ledger.stage('vm2')]
  write(first, ledger.enter(first, 9 * MiB, 10 * MiB))
  ledger.release(first)
  fs.rmSync(first.path, { recursive: true })
  t.match(ledger.enter(second, 9 * MiB, 10 * MiB), { kind: 'admitted' })
  t.equal(fs.readdirSync(ledger.entries).length, 1)
  t.end()
})

t.test('memory stage: an entry stays while the directory of its VM is not there', needsTmpfs, async (t) => {
  const ledger = new Ledger(t, tmpfs.directory)
  leftIn(ledger)
  const directory = path.join(ledger.store, 'vm1')
  fs.renameSync(directory, `${directory} elsewhere`)
  const other = ledger.stage('vm2')
  const refused = { kind: 'refused', reason: 'memory-stage-full' }
  t.match(ledger.enter(other, 9 * MiB, 9 * MiB), refused, 'it is counted')
  const { stranded } = jobs.inspectMemoryStage(ledger.directory)
  t.strictSame(
    stranded.map((entry) => path.dirname(entry)),
    [ledger.entries],
  )
  fs.renameSync(`${directory} elsewhere`, directory)
  t.match(ledger.enter(other, 9 * MiB, 9 * MiB), refused)
  t.strictSame(jobs.inspectMemoryStage(ledger.directory).stranded, [])
  const listed = await createClient({ checkpointDirectory: ledger.store }).listCheckpoints('vm1')
  t.match(listed, [{ state: 'complete' }])
  t.end()
})

t.test('memory stage: an entry stays while another directory has the name of its VM', needsTmpfs, (t) => {
  const ledger = new Ledger(t, tmpfs.directory)
  leftIn(ledger)
  const directory = path.join(ledger.store, 'vm1')
  fs.renameSync(directory, `${directory} renamed`)
  const [other, another] = [ledger.stage(), ledger.stage('vm2')]
  t.match(ledger.enter(other, MiB), { kind: 'admitted' })
  t.match(ledger.enter(another, 9 * MiB, 9 * MiB), { kind: 'refused', reason: 'memory-stage-full' })
  t.match(jobs.listCheckpoints(`${directory} renamed`, 'vm1'), [{ state: 'complete' }])
  t.end()
})

t.test('memory stage: a stage is not removed while another file system hides its entry', needsTmpfs, (t) => {
  const ledger = new Ledger(t, tmpfs.directory)
  leftIn(ledger)
  const directory = path.join(ledger.store, 'vm1')
  execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', ledger.directory])
  t.strictSame(jobs.listCheckpoints(directory, 'vm1'), [])
  execFileSync('umount', [ledger.directory])
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ state: 'complete' }])
  t.end()
})

t.test('memory stage: the same while bhyve runs', needsTmpfs, (t) => {
  const ledger = new Ledger(t, tmpfs.directory)
  const status = native.processStatus(process.pid)
  if (isFailure(status)) throw new Error('the status of this process cannot be read')
  const stage = ledger.stage('vm1', { ...nobody, pid: process.pid, startedAt: status.startedAt })
  write(stage, ledger.enter(stage, 9 * MiB))
  ledger.release(stage)
  execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', ledger.directory])
  t.strictSame(jobs.listCheckpoints(path.join(ledger.store, 'vm1'), 'vm1'), [])
  execFileSync('umount', [ledger.directory])
  t.ok(fs.existsSync(stage.path), 'nobody knows how long bhyve has written nothing')
  t.end()
})

t.test('memory stage: what recovery will copy to the disk stays reserved', needsTmpfs, (t) => {
  const ledger = new Ledger(t, tmpfs.directory)
  const stage = ledger.stage()
  jobs.recordReservation(stage.handle, 9 * MiB)
  write(stage, ledger.enter(stage, 9 * MiB))
  ledger.release(stage)
  const directory = path.join(ledger.store, 'vm1')
  t.match(jobs.reservedSpace([directory]), [{ bytes: 9 * MiB }])
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ state: 'complete' }])
  t.strictSame(jobs.reservedSpace([directory]), [])
  t.end()
})

t.test('memory stage: the entry of a stage that somebody else removed', needsTmpfs, (t) => {
  const ledger = new Ledger(t, tmpfs.directory)
  const stage = ledger.stage()
  write(stage, ledger.enter(stage, 9 * MiB))
  fs.rmSync(path.join(ledger.store, 'vm1'), { recursive: true })
  jobs.abandonStage(stage.handle, [])
  t.strictSame(tree(ledger.directory), [])
  t.end()
})

t.test(
  'memory stage: the directory of the entries is replaced while the last one leaves',
  needsTmpfs,
  (t) => {
    const ledger = new Ledger(t, tmpfs.directory)
    const stage = ledger.stage()
    ledger.enter(stage, MiB)
    const lock = native.lock.bind(native)
    t.teardown(() => Object.assign(native, { lock }))
    native.lock = (descriptor, mode) => {
      // Another process removes it first, and a third one makes it again.
      if (
        mode === 'exclusive' &&
        fs.readdirSync(ledger.directory).length > 0 &&
        fs.readdirSync(ledger.entries).length === 0
      ) {
        fs.rmdirSync(ledger.entries)
        fs.mkdirSync(ledger.entries, { mode: 0o700 })
      }
      return lock(descriptor, mode)
    }
    jobs.abandonStage(stage.handle, [])
    t.ok(fs.existsSync(ledger.entries), 'the new directory is not removed')
    t.end()
  },
)

t.test('memory stage: a stage is not removed where the memory stage cannot be seen', needsTmpfs, (t) => {
  const ledger = new Ledger(t, tmpfs.directory)
  const stage = leftIn(ledger)
  const hidden = `${ledger.directory} hidden`
  fs.renameSync(ledger.directory, hidden)
  const directory = path.join(ledger.store, 'vm1')
  t.strictSame(jobs.listCheckpoints(directory, 'vm1'), [])
  t.ok(fs.existsSync(stage.path))
  fs.renameSync(hidden, ledger.directory)
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ state: 'complete' }])
  t.end()
})

t.test('memory stage: the files and directories of others are not touched', needsTmpfs, (t) => {
  const ledger = new Ledger(t, tmpfs.directory)
  const others = ['vm1/disk.img', 'builds/result', 'user/1000/socket', 'abc/in/ckp']
  for (const other of others) {
    fs.mkdirSync(path.join(ledger.directory, path.dirname(other)), { recursive: true, mode: 0o700 })
    fs.writeFileSync(path.join(ledger.directory, other), 'x')
  }
  const stage = ledger.stage()
  t.match(ledger.enter(stage, MiB), { kind: 'admitted' })
  t.equal(fs.statSync(ledger.entries).mode & 0o777, 0o700, 'no other user can open or lock the directory')
  jobs.abandonStage(stage.handle, [])
  t.strictSame(
    tree(ledger.directory).filter((entry) => !entry.endsWith('/')),
    others.toSorted(),
  )
  t.notOk(fs.existsSync(ledger.entries), 'an empty directory is removed')
  t.end()
})

t.test('memory stage: entries that a process left while it made them block no other', needsTmpfs, (t) => {
  const ledger = new Ledger(t, tmpfs.directory)
  const owner = (directory: string): string => JSON.stringify({ directory, staging: '1:2', id: 'x' })
  const records = [
    '',
    '/',
    'null',
    owner('/cut').slice(0, -9),
    owner('/dev/null'),
    owner(`/${'x'.repeat(300)}`),
  ]
  for (const [index, record] of records.entries()) {
    const entry = path.join(ledger.entries, `left${index}`)
    fs.mkdirSync(path.join(entry, 'in'), { recursive: true })
    fs.writeFileSync(path.join(entry, 'size'), ['', '1', 'NaN', '-5'][index % 4]!)
    fs.writeFileSync(path.join(entry, 'stage'), record)
  }
  fs.chmodSync(ledger.directory, 0o700)
  const stage = ledger.stage()
  t.match(ledger.enter(stage, MiB, MiB - 1), { kind: 'refused', reason: 'memory-stage-full' })
  t.match(ledger.enter(stage, MiB), { kind: 'admitted' })
  const undecided = fs.readdirSync(ledger.entries).filter((entry) => entry.startsWith('left'))
  t.strictSame(undecided, ['left4', 'left5'], 'a path that cannot be opened may be that of a stage')
  t.end()
})

t.test('memory stage: a size that is not a number admits nothing more', needsTmpfs, (t) => {
  const ledger = new Ledger(t, tmpfs.directory)
  const [first, second] = [ledger.stage(), ledger.stage('vm2')]
  const admission = ledger.enter(first, MiB)
  write(first, admission)
  fs.writeFileSync(path.join((admission as { path: string }).path, 'size'), 'many')
  const written = fs.statSync(path.join((admission as { path: string }).path, 'in/ckp')).size
  t.match(ledger.enter(second, MiB, written + MiB - 1), { kind: 'refused', reason: 'memory-stage-full' })
  t.end()
})

t.test('memory stage: an entry that its owner removes during the admission', needsTmpfs, (t) => {
  const [openAt, readDirectory] = [native.openAt.bind(native), native.readDirectory.bind(native)]
  t.teardown(() => Object.assign(native, { openAt, readDirectory }))
  for (const when of ['listed', 'opened', 'in its inbox'] as const) {
    const ledger = new Ledger(t, tmpfs.directory)
    const [first, second] = [ledger.stage(), ledger.stage('vm2')]
    const admission = ledger.enter(first, MiB)
    if (admission.kind !== 'admitted') throw new Error(admission.kind)
    const gone = (): void => fs.rmSync(admission.path, { recursive: true, force: true })
    let lists = 0
    native.readDirectory = (descriptor, limit) => {
      const names = readDirectory(descriptor, limit)
      if (++lists === 1 && when === 'listed') gone()
      // Not every system reads a removed directory as an empty one.
      const isGone = lists === 2 && when === 'opened'
      return isGone ? { errno: os.constants.errno.ENOENT, syscall: 'getdents' } : names
    }
    native.openAt = (directory, name, flags, mode) => {
      const isEntry = name === path.basename(admission.path)
      if (name === 'in' && lists >= 1 && when === 'in its inbox') gone()
      const opened = openAt(directory, name, flags, mode)
      if (isEntry && lists >= 1 && when === 'opened') gone()
      return opened
    }
    t.match(ledger.enter(second, MiB, MiB), { kind: 'admitted' }, when)
    t.notOk(fs.existsSync(admission.path))
    Object.assign(native, { openAt, readDirectory })
  }
  t.end()
})

t.test('memory stage: a tmpfs without room for the entry itself', { skip: tmpfs.skip }, (t) => {
  for (let inodes = 2; inodes <= 12; inodes++) {
    const small = mounted(t, 'tmpfs', 8 * MiB, `nr_inodes=${inodes}`)
    const stage = new Ledger(t, tmpfs.directory).stage()
    const request = { directory: small.directory, maxBytes: undefined, writerUid: 0, memoryBytes: MiB }
    const admission = jobs.enterMemory(stage.handle, request)
    const expected = inodes > 11 ? { kind: 'admitted' } : { kind: 'refused', reason: 'memory-stage-full' }
    t.match(admission, expected, `${inodes} inodes`)
    if (admission.kind !== 'admitted') continue
    for (const descriptor of Object.values(admission.descriptors)) native.close(descriptor)
  }
  t.end()
})

t.test(
  'memory stage: a complete checkpoint of a dead process is kept if bhyve has ended',
  needsTmpfs,
  async (t) => {
    const ledger = new Ledger(t, tmpfs.directory)
    const stage = ledger.stage()
    write(stage, ledger.enter(stage, 9 * MiB, 10 * MiB))
    ledger.release(stage)
    const other = ledger.stage('vm2')
    t.match(ledger.enter(other, 9 * MiB, 10 * MiB), { kind: 'refused', reason: 'memory-stage-full' })
    const client = createClient({ checkpointDirectory: ledger.store })
    const [kept] = await client.listCheckpoints('vm1')
    t.match(ledger.enter(other, 9 * MiB, 10 * MiB), { kind: 'admitted' })
    t.match(kept, { state: 'complete', name: /^live-[0-9a-z]+$/ })
    t.match(await client.verifyCheckpoint('vm1', kept!.name, { depth: 'content' }), { ok: true })
  },
)

t.test('memory stage: an incomplete checkpoint of a dead process is removed', needsTmpfs, (t) => {
  const ledger = new Ledger(t, tmpfs.directory)
  const stage = ledger.stage()
  const admission = ledger.enter(stage, 9 * MiB)
  write(stage, admission)
  if (admission.kind === 'admitted') fs.truncateSync(path.join(admission.path, 'in/ckp.meta'), 10)
  ledger.release(stage)
  t.strictSame(jobs.listCheckpoints(path.join(ledger.store, 'vm1'), 'vm1'), [])
  t.strictSame(tree(ledger.directory), [])
  t.end()
})

t.test('memory stage: another directory under the recorded path is not touched', needsTmpfs, (t) => {
  const ledger = new Ledger(t, tmpfs.directory)
  const stage = ledger.stage()
  const admission = ledger.enter(stage, 9 * MiB)
  if (admission.kind !== 'admitted') throw new Error(admission.kind)
  write(stage, admission)
  ledger.release(stage)
  fs.renameSync(admission.path, path.join(ledger.entries, 'elsewhere'))
  fs.mkdirSync(admission.path)
  fs.writeFileSync(path.join(admission.path, 'somebody'), "else's")
  t.strictSame(jobs.listCheckpoints(path.join(ledger.store, 'vm1'), 'vm1'), [])
  t.ok(fs.existsSync(path.join(admission.path, 'somebody')))
  t.end()
})
