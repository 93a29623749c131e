/** The record of a rollback: when it is trusted, what it prevents, and when it is removed. */
import { randomUUID } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import type { CheckpointClient, DiskProvider } from 'bhyve-checkpoint'
import { rejection, until } from '../../support/index.js'
import { codesOf, isAlive } from '../../support/restore_world.js'
import { copyingDisks, DiskWorld } from '../../support/disk_world.js'
import { changeManifest } from '../../support/sets.js'

const failingStart = { instead: 'exit 1' }

/** Leaves an unfinished rollback to `a`, with one of two disks put back. */
async function interrupted(world: DiskWorld): Promise<void> {
  let calls = 0
  const onCall = (): void => {
    if (++calls === 2) throw new Error('died here')
  }
  const options = { args: world.args, bhyve: world.script(), disks: 'rollback' } as const
  await rejection(world.with({ onCall }).restore('vm1', 'a', options))
}

const recordOf = (world: DiskWorld) =>
  JSON.parse(fs.readFileSync(world.rollbackRecord, 'utf8')) as Record<string, unknown>

t.test('rollback record: a hostile one changes no disk', async (t) => {
  const world = new DiskWorld(t)
  await world.saved('a')
  world.addSnapshots('a')
  const victim = path.join(world.root, 'victim')
  const evil = path.join(world.root, 'evil')
  fs.writeFileSync(victim, 'good')
  fs.writeFileSync(evil, 'evil')
  const owner = { vm: 'vm1', id: world.manifest('a').id, directory: world.directory }
  const hostile = [{ kind: 'copy', disks: [{ path: victim, snapshot: evil }] }]
  const write = (disks: unknown, more: object = {}): void => {
    const rollback = { id: randomUUID(), vm: 'vm1', checkpoint: 'a', owner, disks, ...more }
    fs.mkdirSync(path.dirname(world.rollbackRecord), { recursive: true, mode: 0o700 })
    fs.writeFileSync(world.rollbackRecord, JSON.stringify(rollback))
  }
  const options = { args: world.args, bhyve: world.script(), disks: 'keep', again: true } as const
  const refused = async (reason: RegExp, args = world.args): Promise<void> => {
    const { blockers } = await world.with().planRestore('vm1', 'a', { ...options, args })
    const ofDisks = blockers.filter(({ code }) => code === 'disks-missing')
    t.match(ofDisks, [{ code: 'disks-missing', message: reason }])
    const error = await rejection(world.with().restore('vm1', 'a', { ...options, args }))
    t.match(error, { code: 'ERR_RESTORE_FAILED', vmState: 'off', message: reason })
    t.equal(fs.readFileSync(victim, 'utf8'), 'good')
    t.strictSame(world.calls(), [])
  }
  write(hostile)
  await refused(/checkpoint 'a' has other disk snapshots/)
  write(world.manifest('a').disks, { owner: { ...owner, id: randomUUID() } })
  await refused(/checkpoint 'a' is another one by now/)
  write(world.manifest('a').disks, { checkpoint: 'none' })
  await refused(/its checkpoint 'none' no longer exists/)
  // The manifest is as hostile as the record.
  changeManifest(world.directory, 'a', { version: 2, disks: hostile })
  write(hostile)
  await refused(/would change '.*victim', which is not a writable disk in the arguments/)
  const elsewhere = ['-l', `bootrom,${victim}`, '-s', `7,ahci-cd,${victim}`, ...world.args]
  await refused(/would change '.*victim', which is not a writable disk in the arguments/, elsewhere)
})

t.test('rollback record: is kept until a start is confirmed, and saves a second rollback', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const options = { args: world.args, disks: 'rollback' } as const
  const failing = { ...options, bhyve: world.script(failingStart) }
  await rejection(world.with().restore('vm1', 'a', failing))
  const { id, done, kept } = recordOf(world)
  t.equal(done, true)
  t.strictSame(
    kept,
    world.images.map((image) => `${image}.${String(id)}`),
  )
  t.strictSame((await world.with().planRestore('vm1', 'a', failing)).warnings, [])
  await rejection(world.with().restore('vm1', 'a', failing))
  const { keptDisks } = await world.with().restore('vm1', 'a', { ...options, bhyve: world.script() })
  t.strictSame(keptDisks, kept, 'the state before the first attempt')
  t.equal(world.calls().length, 2, 'each disk was put back once')
  t.notOk(fs.existsSync(world.rollbackRecord))
})

t.test('rollback record: disks that have changed since are put back again', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const options = { args: world.args, disks: 'rollback' } as const
  await rejection(world.with().restore('vm1', 'a', { ...options, bhyve: world.script(failingStart) }))
  const { id } = recordOf(world)
  // Somebody has started the VM without this library.
  fs.writeFileSync(world.images[1] ?? '', 'later')
  fs.utimesSync(world.images[1] ?? '', 4e9, 4e9)
  const { keptDisks } = await world.with().restore('vm1', 'a', { ...options, bhyve: world.script() })
  t.strictSame(world.contents(), ['then', 'then'])
  t.notOk(keptDisks?.some((kept) => kept.endsWith(String(id))))
  t.equal(world.calls().length, 4)
})

t.test('rollback record: another checkpoint needs a decision about the disks', async (t) => {
  const world = new DiskWorld(t)
  await world.saved('a')
  world.addSnapshots('a')
  for (const image of world.images) fs.writeFileSync(image, 'now')
  await world.suspended('s')
  const provider = copyingDisks(world.log)
  const old = new Date(Date.now() - 3_600_000)
  const backdating: DiskProvider = {
    ...provider,
    // A ZFS clone has the times of the snapshot, so the times of the disks show nothing.
    rollback: async (record, options, owner) => {
      const kept = await provider.rollback?.(record, options, owner)
      for (const disk of record.disks) fs.utimesSync(disk.path, old, old)
      return kept ?? []
    },
  }
  const client = world.newClient({ diskProviders: [backdating] })
  const rollback = { args: world.args, bhyve: world.script(failingStart), disks: 'rollback' } as const
  t.match((await client.planRestore('vm1', 'a', rollback)).warnings, [
    { code: 'disks-moved-on', message: /the suspended state 's'.*needs the disks as they are now/ },
  ])
  await rejection(client.restore('vm1', 'a', rollback))
  t.strictSame(world.contents(), ['then', 'then'])
  const options = { args: world.args, bhyve: world.script() }
  const error = await rejection(client.restore('vm1', 's', options))
  t.strictSame(codesOf(error), ['disks-undecided'])
  t.match(error.message, /the disks were put back to checkpoint 'a'/)
  t.equal(world.pidOf(options.bhyve), 0)
  t.ok(isAlive((await client.restore('vm1', 's', { ...options, disks: 'keep' })).pid))
  t.notOk(fs.existsSync(world.rollbackRecord))
})

t.test('rollback record: a rollback to another checkpoint replaces a done one', async (t) => {
  const world = new DiskWorld(t)
  await world.saved('a', 'b')
  for (const name of ['a', 'b']) {
    for (const image of world.images) fs.writeFileSync(image, name)
    world.addSnapshots(name)
  }
  const options = { args: world.args, bhyve: world.script(failingStart), disks: 'rollback' } as const
  await rejection(world.with().restore('vm1', 'a', options))
  t.match(recordOf(world), { checkpoint: 'a', done: true })
  const former = fs.readFileSync(world.rollbackRecord, 'utf8')
  const refusing = unchanging(world, 0)
  t.match(await rejection(refusing.restore('vm1', 'b', options)), { message: /No disk was changed/ })
  t.equal(fs.readFileSync(world.rollbackRecord, 'utf8'), former, 'the disks are still those of a')
  await rejection(world.with().restore('vm1', 'b', options))
  t.match(recordOf(world), { checkpoint: 'b', done: true })
  t.strictSame(world.contents(), ['b', 'b'])
  await world.with().destroyCheckpoint('vm1', 'b')
  t.ok(fs.existsSync(world.rollbackRecord), 'the checkpoint is not needed any more, its record is')
  t.match(await world.with().pruneCheckpoints('vm1', { keepLast: 1 }), { kept: ['a'] })
  await world.with().destroyAll('vm1')
  await until(() => !fs.existsSync(world.directory), 'the removal of the directory')
})

/** A client whose provider refuses without a change, after it has put back this many disks. */
function unchanging(world: DiskWorld, after: number): CheckpointClient {
  let calls = 0
  const onCall = (): void => {
    if (calls++ === after) throw Object.assign(new Error('no space left'), { unchanged: true })
  }
  return world.with({ onCall })
}

t.test('rollback: is dropped if no disk was changed', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const options = { args: world.args, bhyve: world.script(), disks: 'rollback' } as const
  const error = await rejection(unchanging(world, 0).restore('vm1', 'a', options))
  t.match(error, { code: 'ERR_RESTORE_FAILED', vmState: 'off' })
  t.match(error.message, /failed: no space left\. No disk was changed, and bhyve was not started$/)
  t.notOk(fs.existsSync(world.rollbackRecord))
  t.strictSame(world.contents(), ['now', 'now'])
  // If another disk is back already, the rollback must be finished.
  const half = await rejection(unchanging(world, 1).restore('vm1', 'a', options))
  t.match(half.message, /Put back: '.*a\.img'.*the next restore of this VM finishes/)
  t.strictSame(world.contents(), ['then', 'now'])
  t.ok(fs.existsSync(world.rollbackRecord))
  await world.with().restore('vm1', 'a', options)
  t.strictSame(world.contents(), ['then', 'then'])
})

t.test('rollback record: no checkpoint is made of a VM that runs on disks of two moments', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  await interrupted(world)
  const pid = await world.begun()
  const before = fs.readFileSync(path.join(world.directory, 'a.ckp'))
  const reason = {
    code: 'ERR_CHECKPOINT_BUSY',
    path: world.rollbackRecord,
    message: /to checkpoint 'a' was interrupted.*disks of two moments.*Power it off without saving/,
  }
  t.match(await rejection(world.client.createCheckpoint('vm1', { name: 'a' })), reason)
  t.match(await rejection(world.client.suspend('vm1', { name: 's' })), reason)
  t.ok(isAlive(pid))
  t.ok(before.equals(fs.readFileSync(path.join(world.directory, 'a.ckp'))))
  await world.kill(pid)
  await world.with().restore('vm1', 'a', { args: world.args, bhyve: world.script(), disks: 'rollback' })
  t.strictSame(world.contents(), ['then', 'then'])
  await world.client.createCheckpoint('vm1', { name: 'b' })
})

t.test('rollback record: a checkpoint of the running VM removes a done one', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const options = { args: world.args, bhyve: world.script(failingStart), disks: 'rollback' } as const
  await rejection(world.with().restore('vm1', 'a', options))
  t.ok(fs.existsSync(world.rollbackRecord))
  await world.begun()
  await world.client.createCheckpoint('vm1', { name: 'b' })
  t.notOk(fs.existsSync(world.rollbackRecord))
})

t.test('rollback record: that of the VM in the arguments counts, too', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  await interrupted(world)
  // Another VM's directory has a copy of the checkpoint.
  const copy = path.join(world.checkpointDirectory, 'vm9')
  fs.cpSync(world.directory, copy, { recursive: true, filter: (file) => !file.includes('.staging') })
  const options = { args: world.args, bhyve: world.script(), disks: 'keep', again: true } as const
  const error = await rejection(world.with().restore('vm9', 'a', options))
  t.match(error, {
    code: 'ERR_RESTORE_BLOCKED',
    blockers: [{ code: 'disks-missing', message: /VM 'vm1', which the arguments name, was interrupted/ }],
  })
  t.equal(world.pidOf(options.bhyve), 0)
  t.strictSame(world.contents(), ['then', 'now'])
})
