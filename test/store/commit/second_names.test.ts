/** Tests of files with a second name, and of names that exist again after a crash. */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { jobs } from '../../../dist/worker/jobs.js'
import { checkpointFiles, failure, intercept, scratch, tree } from '../../support/index.js'
import { changeManifest, memoryBytes, putSet } from '../../support/sets.js'
import { nobody, MadeStage, ram, store, list, assertRam } from '../../support/stages.js'

const ours = process.geteuid!()

t.test('recovery: publishes a suspended state whose files have a second name', async (t) => {
  const backup = path.join(scratch(t), 'backup')
  const directory = store(t)
  const stage = new MadeStage(directory)
  stage.release()
  // rsnapshot makes its snapshots in this way.
  t.equal(spawnSync('cp', ['-al', directory, backup]).status, 0)
  t.match(list(directory), [{ name: 'suspend', state: 'complete', poweredOff: true }])
  assertRam(t, directory, 'suspend')
  const copied = fs.statSync(path.join(directory, 'suspend.ckp'))
  t.equal(copied.nlink, 1)
  const linked = path.join(backup, '.staging', path.basename(stage.path), 'in', 'ckp')
  t.ok(fs.readFileSync(linked).equals(ram), "the backup's file is unchanged")
  t.equal(copied.mtimeMs, fs.statSync(linked).mtimeMs)
})

t.test('collect: copies a file of a suspend that has a second name', async (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  const other = path.join(scratch(t), 'other')
  fs.linkSync(stage.file('in/ckp'), other)
  t.match(jobs.collectStage(stage.handle, 'suspend'), { problems: [] })
  t.not(fs.statSync(stage.file('suspend.ckp')).ino, fs.statSync(other).ino)
  stage.release()
})

t.test("another user's file does not become guest RAM", { skip: ours !== 0 && 'needs root' }, async (t) => {
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
  t.strictSame(fs.readdirSync(aside), [`${kept!.name}.ckp`], 'the linked file is kept beside the checkpoint')
})

t.test('recovery: keeps unexpected files even if it is interrupted and repeated', async (t) => {
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

t.test('UFS: a commit that exists again after a crash keeps later pins and restore records', async (t) => {
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
  // The pin writes a new manifest, so the one that exists again is the old one.
  const old = fs.readFileSync(path.join(directory, manifest))
  fs.rmSync(path.join(ready, manifest))
  fs.writeFileSync(path.join(ready, manifest), old)
  changeManifest(directory, 'suspend', { pinned: true, restoredAt: new Date().toISOString() })
  t.match(list(directory), [{ name: 'suspend', state: 'complete', pinned: true, restoredAt: Date }])
  assertRam(t, directory, 'suspend')
  t.strictSame(tree(path.join(directory, '.staging')), [])
  t.equal(fs.statSync(path.join(directory, 'suspend.ckp')).nlink, 1)
})

t.test('UFS: recovery finishes a removal of which only some names have reached the disk', async (t) => {
  const directory = store(t)
  putSet(directory, 'one')
  putSet(directory, 'two')
  const trash = path.join(directory, '.staging', 'abc.trash')
  fs.mkdirSync(trash, { recursive: true })
  for (const suffix of ['.ckp', '.ckp.kern', '.ckp.meta', '.ckp.manifest'])
    fs.linkSync(path.join(directory, `one${suffix}`), path.join(trash, `one${suffix}`))
  // Of 'two', only the new names of the kernel, metadata and manifest file have reached the disk.
  for (const suffix of ['.ckp.kern', '.ckp.meta', '.ckp.manifest'])
    fs.linkSync(path.join(directory, `two${suffix}`), path.join(trash, `two${suffix}`))
  fs.renameSync(path.join(directory, 'two.ckp'), path.join(trash, 'two.ckp'))
  t.strictSame(list(directory), [])
  t.strictSame(checkpointFiles(directory), [])
})

t.test('salvage: rejects if another stage has taken the name of a removed one', (t) => {
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

t.test('UFS: roll forward does not touch a checkpoint under an earlier name of the state', async (t) => {
  const directory = store(t)
  putSet(directory, 'suspend')
  const existing = fs.statSync(path.join(directory, 'suspend.ckp')).ino
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
  t.equal(fs.statSync(path.join(directory, 'suspend.ckp')).ino, existing)
})
