/** Files with a second name, and names that a crash brings back. */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { jobs } from '../../../dist/worker/jobs.js'
import { checkpointFiles, failure, intercept, scratch, tree } from '../../support/index.js'
import { changeManifest, memoryBytes, putSet } from '../../support/sets.js'
import { nobody, MadeStage, ram, store, list, assertRam } from '../../support/stages.js'

const ours = process.geteuid!()

t.test('a second name costs no VM its RAM', async (t) => {
  const backup = path.join(scratch(t), 'backup')
  const directory = store(t)
  const stage = new MadeStage(directory)
  stage.release()
  // As rsnapshot makes its snapshots.
  t.equal(spawnSync('cp', ['-al', directory, backup]).status, 0)
  t.match(list(directory), [{ name: 'suspend', state: 'complete', poweredOff: true }])
  assertRam(t, directory, 'suspend')
  const copied = fs.statSync(path.join(directory, 'suspend.ckp'))
  t.equal(copied.nlink, 1)
  const linked = path.join(backup, '.staging', path.basename(stage.path), 'in', 'ckp')
  t.ok(fs.readFileSync(linked).equals(ram), "the backup's file is as it was")
  t.equal(copied.mtimeMs, fs.statSync(linked).mtimeMs)
})

t.test('a manager that lives copies what has a second name, too', async (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  const other = path.join(scratch(t), 'other')
  fs.linkSync(stage.file('in/ckp'), other)
  t.match(jobs.collectStage(stage.handle, 'suspend'), { problems: [] })
  t.not(fs.statSync(stage.file('suspend.ckp')).ino, fs.statSync(other).ino)
  stage.release()
})

t.test("somebody else's file does not become guest RAM", { skip: ours !== 0 && 'needs root' }, async (t) => {
  const directory = store(t)
  const secret = path.join(scratch(t), 'secret')
  fs.writeFileSync(secret, Buffer.alloc(memoryBytes, 'secret'))
  const stage = new MadeStage(directory, { writer: { ...nobody, uid: 65_534 } })
  fs.rmSync(stage.file('in/ckp'))
  fs.linkSync(secret, stage.file('in/ckp'))
  stage.release()
  const [kept, ...others] = list(directory)
  t.match(kept, { state: 'damaged', poweredOff: true })
  t.strictSame(others, [])
  t.equal(fs.statSync(path.join(directory, `${kept!.name}.ckp`)).size, 0)
  const aside = path.join(directory, `${kept!.name}.ckp.rest`)
  t.strictSame(fs.readdirSync(aside), [`${kept!.name}.ckp`], 'kept aside, not removed')
})

t.test('what was kept aside outlives a recovery that is interrupted', async (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  for (const file of fs.readdirSync(stage.file('in'))) fs.rmSync(stage.file(`in/${file}`))
  fs.symlinkSync('/elsewhere', stage.file('in/ckp'))
  stage.release()
  const interrupted = intercept(t, 'renameAt', (_, __, ___, to) =>
    String(to).endsWith('.ready') ? failure('EIO', 'renameat') : undefined,
  )
  t.strictSame(list(directory), [])
  interrupted()
  const [kept, ...others] = list(directory)
  t.match(kept, { state: 'damaged', poweredOff: true })
  t.strictSame(others, [])
  const aside = path.join(directory, `${kept!.name}.ckp.rest`)
  t.equal(fs.readlinkSync(path.join(aside, `${kept!.name}.ckp`)), '/elsewhere')
})

t.test('UFS: a commit that a crash brings back takes no pin and no restore record away', async (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  stage.release()
  list(directory)
  const ready = path.join(directory, '.staging', 'abc.ready')
  const manifest = 'suspend.ckp.manifest'
  fs.mkdirSync(ready)
  for (const suffix of ['.ckp', '.ckp.kern', '.ckp.meta'])
    fs.linkSync(path.join(directory, `suspend${suffix}`), path.join(ready, `suspend${suffix}`))
  fs.linkSync(path.join(directory, manifest), path.join(ready, manifest))
  // The pin makes a new manifest: the one that comes back is the old one.
  const old = fs.readFileSync(path.join(directory, manifest))
  fs.rmSync(path.join(ready, manifest))
  fs.writeFileSync(path.join(ready, manifest), old)
  changeManifest(directory, 'suspend', { pinned: true, restoredAt: new Date().toISOString() })
  t.match(list(directory), [{ name: 'suspend', state: 'complete', pinned: true, restoredAt: Date }])
  assertRam(t, directory, 'suspend')
  t.strictSame(tree(path.join(directory, '.staging')), [])
  t.equal(fs.statSync(path.join(directory, 'suspend.ckp')).nlink, 1)
})

t.test('UFS: what was half moved into the trash goes for good', async (t) => {
  const directory = store(t)
  putSet(directory, 'one')
  putSet(directory, 'two')
  const trash = path.join(directory, '.staging', 'abc.trash')
  fs.mkdirSync(trash, { recursive: true })
  for (const suffix of ['.ckp', '.ckp.kern', '.ckp.meta', '.ckp.manifest'])
    fs.linkSync(path.join(directory, `one${suffix}`), path.join(trash, `one${suffix}`))
  // Of the other one only the new names of the companions have reached the disk.
  for (const suffix of ['.ckp.kern', '.ckp.meta', '.ckp.manifest'])
    fs.linkSync(path.join(directory, `two${suffix}`), path.join(trash, `two${suffix}`))
  fs.renameSync(path.join(directory, 'two.ckp'), path.join(trash, 'two.ckp'))
  t.strictSame(list(directory), [])
  t.strictSame(checkpointFiles(directory), [])
})

t.test('a stage that somebody removed is not taken for another one of its name', (t) => {
  const directory = store(t)
  const [gone, other] = [new MadeStage(directory), new MadeStage(directory, { name: 'other' })]
  gone.prepare()
  fs.rmSync(gone.path, { recursive: true })
  other.release()
  fs.renameSync(other.path, gone.path)
  t.throws(() => jobs.salvageStage(gone.handle), {
    code: 'ERR_SYSTEM',
    message: /was removed before its checkpoint was published/,
  })
  gone.release()
  t.match(list(directory), [{ name: 'other', state: 'complete' }])
  t.end()
})

t.test("UFS: the name that a state had before is somebody else's by now", async (t) => {
  const directory = store(t)
  putSet(directory, 'suspend')
  const standing = fs.statSync(path.join(directory, 'suspend.ckp')).ino
  const ready = path.join(directory, '.staging', 'abc.ready')
  putSet(ready, 'suspend-1', { manifest: { poweredOff: true } })
  const intent = { vm: 'vm1', name: 'suspend-1', ifExists: 'fail', poweroff: true, wanted: 'suspend' }
  fs.writeFileSync(path.join(ready, 'intent'), JSON.stringify(intent))
  for (const ending of ['', '.kern', '.meta'])
    fs.linkSync(path.join(ready, `suspend-1.ckp${ending}`), path.join(ready, `suspend.ckp${ending}`))
  const listed = list(directory).sort((one, other) => (one.name < other.name ? -1 : 1))
  t.match(listed, [
    { name: 'suspend', state: 'complete', poweredOff: false },
    { name: 'suspend-1', state: 'complete', poweredOff: true },
  ])
  t.equal(listed.length, 2)
  t.equal(fs.statSync(path.join(directory, 'suspend.ckp')).ino, standing)
})
