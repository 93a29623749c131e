/** What a power failure, a failed fsync, a second name or a dead manager leaves in a stage, and what is made of it. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { createClient, type ListedCheckpoint } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { createClientIn } from '../../../dist/client/client.js'
import { isFailure, loadNative } from '../../../dist/base/native.js'
import { realSurroundings } from '../../../dist/client/surroundings.js'
import { jobs } from '../../../dist/worker/jobs.js'
import {
  checkpointFiles,
  childEnvironment,
  failure,
  inlinePool,
  intercept,
  rejection,
  scratch,
  tree,
  until,
} from '../../support/index.js'
import { changeManifest, manifestOf, memoryBytes, putSet } from '../../support/sets.js'

const native = loadNative()
const ours = process.geteuid!()
/** No system gives out such a pid. */
const nobody = { pid: 2 ** 30, startedAt: '1', uid: ours, dialect: 'descriptor' }

type Handle = Parameters<typeof jobs.secureStage>[0]

interface StageOptions {
  poweroff?: boolean
  writer?: typeof nobody
  name?: string
}

/** A stage with a complete checkpoint in its inbox, as bhyve leaves it. Its maker lives until `release`. */
class MadeStage {
  readonly handle: Handle
  readonly path: string
  readonly #descriptors: number[]

  constructor(directory: string, { poweroff = true, writer = nobody, name = 'suspend' }: StageOptions = {}) {
    const intent = { vm: 'vm1', name, ifExists: 'replace', poweroff } as const
    const request = { directory, name, ifExists: 'replace', durable: true, writerUid: ours, intent } as const
    const made = jobs.createStage({ ...request, memoryBytes: undefined })
    const { directory: descriptor, stage } = made.descriptors
    this.handle = { directoryPath: directory, directory: descriptor, stage, id: made.id }
    this.#descriptors = Object.values(made.descriptors)
    this.path = path.join(directory, '.staging', made.id)
    jobs.recordWriter(this.handle, writer)
    const inbox = path.join(this.path, 'in')
    putSet(inbox, 'x', { manifest: false })
    fs.writeFileSync(path.join(inbox, 'x.ckp'), ram)
    const kernelBytes = fs.statSync(path.join(inbox, 'x.ckp.kern')).size
    fs.writeFileSync(path.join(inbox, 'x.ckp.kern'), Buffer.alloc(kernelBytes, 'kernel and devices; '))
    for (const ending of ['', '.kern', '.meta'])
      fs.renameSync(path.join(inbox, `x.ckp${ending}`), path.join(inbox, `ckp${ending}`))
  }

  file(name: string): string {
    return path.join(this.path, name)
  }

  /** Its manager dies. */
  release(): void {
    for (const descriptor of this.#descriptors) native.close(descriptor)
  }

  /** And the host goes down. */
  reboot(): void {
    this.release()
    const intent = this.file(fs.existsSync(this.file('live')) ? 'live' : 'intent')
    const text = fs.readFileSync(intent, 'utf8')
    fs.writeFileSync(intent, JSON.stringify({ ...(JSON.parse(text) as object), boot: 'another' }))
  }

  /** Up to the manifest, which is there with digests; `meanwhile` comes before the scan. */
  prepare(meanwhile?: () => void): void {
    const { handle } = this
    const { inspection, savedMs } = jobs.collectStage(handle, 'suspend')
    meanwhile?.()
    const request = { name: 'suspend', memoryBytes, digest: true, sparsify: true, durable: true }
    const content = jobs.passWhole(handle, request, new Int32Array(1))!
    const manifest = {
      ...{ version: 1, id: 'an-id', vm: 'vm1', name: 'suspend', createdAt: new Date(savedMs).toISOString() },
      ...{ poweredOff: true, pinned: false, memoryModifiedMs: content.modifiedMs },
      sizes: { memory: memoryBytes, kernel: inspection!.metadata!.kernelBytes },
      digests: content.digests!,
    }
    jobs.prepareStage(handle, { name: 'suspend', ifExists: 'replace', durable: true, manifest })
  }
}

const ram = Buffer.alloc(memoryBytes, 'what the guest had in its memory; ')

function store(t: Test): string {
  const directory = path.join(scratch(t), 'vm1')
  fs.mkdirSync(directory)
  return directory
}

function list(directory: string): ListedCheckpoint[] {
  return jobs.listSets(directory, 'vm1')
}

const unproven = [{ state: 'damaged', poweredOff: true, problems: [{ code: 'durability-unproven' }] }]

function assertRam(t: Test, directory: string, name: string): void {
  t.ok(fs.readFileSync(path.join(directory, `${name}.ckp`)).equals(ram), `the RAM of ${name}`)
}

t.test('after a reboot, files that were not fsynced are no complete checkpoint', async (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  // What ext4 with data=writeback, or UFS, may leave: the size without the content.
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
  t.strictSame(removed, [], 'it may be a good only copy')

  const args = ['-c', '2', '-m', '4M', '-s', '0,hostbridge', 'vm1']
  const plan = (again: boolean) => client.planRestore('vm1', name, { args, again })
  t.match((await plan(false)).blockers, [{ code: 'damaged', message: /fsynced.*again/ }])
  const overridden = await plan(true)
  t.notOk(overridden.blockers.some(({ code }) => code === 'damaged'))
  t.ok(overridden.warnings.some(({ code }) => code === 'not-verified'))
})

t.test('an unproven checkpoint can be started with again, and only once', async (t) => {
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
  const [emulation, place] = device.split('@pci.')
  return ['-s', `${place!.replace(/\./g, ':')},${emulation!}`]
}

t.test('files that were fsynced before the host went down are the checkpoint', async (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  jobs.collectStage(stage.handle, 'suspend')
  jobs.secureStage(stage.handle, 'suspend')
  stage.reboot()
  t.match(list(directory), [{ name: 'suspend', state: 'complete', poweredOff: true }])
  assertRam(t, directory, 'suspend')
})

t.test('digests prove what no record of an fsync does', async (t) => {
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
    jobs.destroySet(directory, damaged[0]!.name)
  }
})

t.test('what was not fsynced of the digests does not get into the manifest', async (t) => {
  const directory = store(t)
  const torn = new MadeStage(directory)
  torn.prepare(() => jobs.secureStage(torn.handle, 'suspend'))
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
  stale.prepare(() => jobs.secureStage(stale.handle, 'suspend'))
  fs.writeFileSync(stale.file('digests'), Buffer.alloc(512))
  stale.reboot()
  list(directory)
  t.match(await client.verifyCheckpoint('vm1', 'suspend', { depth: 'content' }), {
    ok: true,
    depth: 'content',
  })
})

t.test('in the same boot a dead manager leaves a complete checkpoint, which recovery fsyncs', async (t) => {
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

t.test('where the system has no boot identity, nothing is concluded from it', async (t) => {
  intercept(t, 'bootIdentity', () => failure('ENOENT', 'sysctlbyname'))
  const directory = store(t)
  const stage = new MadeStage(directory)
  stage.release()
  t.match(list(directory), unproven)
  const secured = new MadeStage(directory)
  jobs.collectStage(secured.handle, 'suspend')
  jobs.secureStage(secured.handle, 'suspend')
  secured.release()
  t.match(list(directory).at(-1), { name: 'suspend', state: 'complete' })
})

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

t.test('an unproven checkpoint stays so, whatever its times and small files are', async (t) => {
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

t.test('a roll forward fsyncs what the files came from', async (t) => {
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

t.test('a failed fsync is not forgotten', async (t) => {
  for (const file of ['suspend.ckp', 'suspend.ckp.kern', 'suspend.ckp.meta']) {
    const directory = store(t)
    const stage = new MadeStage(directory)
    jobs.collectStage(stage.handle, 'suspend')
    const restore = intercept(t, 'sync', (descriptor) => {
      const isIt = fs.readlinkSync(`/proc/self/fd/${String(descriptor)}`).endsWith(`/${file}`)
      return isIt ? failure('EIO', 'fsync') : undefined
    })
    t.throws(() => jobs.secureStage(stage.handle, 'suspend'), { code: 'ERR_SYSTEM', syscall: 'fsync' })
    stage.release()
    t.strictSame(list(directory), [], `${file}: nothing is published while the disk fails`)
    restore()
    const suspect = fs.statSync(stage.file(file)).ino
    t.match(list(directory), [{ name: 'suspend', state: 'complete' }], file)
    t.not(fs.statSync(path.join(directory, file)).ino, suspect, `${file} is a new file`)
    assertRam(t, directory, 'suspend')
  }
})

t.test('after a failed fsync the copy has to have the digests from before', async (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  let restore: (() => void) | undefined
  const secureThenFail = (): void => {
    jobs.secureStage(stage.handle, 'suspend')
    restore = intercept(t, 'sync', (descriptor) => {
      const target = fs.readlinkSync(`/proc/self/fd/${String(descriptor)}`)
      return target.endsWith('/suspend.ckp') ? failure('EIO', 'fsync') : undefined
    })
  }
  t.throws(() => stage.prepare(secureThenFail), { code: 'ERR_SYSTEM', syscall: 'fsync' })
  restore?.()
  // The pages that did not reach the disk are read as they were before.
  const descriptor = fs.openSync(stage.file('suspend.ckp'), 'r+')
  const { mtime } = fs.fstatSync(descriptor)
  fs.writeSync(descriptor, Buffer.alloc(4096), 0, 4096, 8192)
  fs.futimesSync(descriptor, mtime, mtime)
  fs.closeSync(descriptor)
  stage.release()
  // A recovery that is interrupted once it has copied the files must not hide what it knew.
  const interrupted = intercept(t, 'renameAt', (_, __, ___, to) =>
    to === 'intent' ? failure('EIO', 'renameat') : undefined,
  )
  t.strictSame(list(directory), [])
  interrupted()
  t.match(list(directory), unproven)
  t.match(jobs.suspendedState(directory, 'vm1', 0), { kind: 'known', checkpoint: undefined })
})

t.test('EIO at any fsync of a suspend: the state is found afterwards, in new files', async (t) => {
  for (let at = 1, struck = true; struck; at++) {
    const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 1024 * 1024 })
    const root = scratch(t)
    const client = createClientIn(
      { ...realSurroundings, pool: () => inlinePool() },
      { runDirectory: bhyve.runDirectory, checkpointDirectory: root },
    )
    let count = 0
    const restore = intercept(t, 'sync', () => (++count === at ? failure('EIO', 'fsync') : undefined))
    const outcome = await client.suspend('vm1').then(
      () => 'resolved',
      (error: unknown) => (error as { code: string }).code,
    )
    restore()
    struck = count >= at
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

/** A client in another process, which can be killed. */
function startCreating(t: Test, bhyve: SimulatedBhyve, root: string, hold: string): ChildProcess {
  const script = fileURLToPath(new URL('../../support/suspend.mjs', import.meta.url))
  const options = JSON.stringify({ poweroff: false, name: 'live' })
  const child = spawn(process.execPath, [script, bhyve.runDirectory, root, hold, options], {
    env: childEnvironment(),
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  t.teardown(() => child.kill('SIGKILL'))
  return child
}

async function killAt(child: ChildProcess, phase: string): Promise<void> {
  let output = ''
  child.stdout!.on('data', (chunk) => (output += String(chunk)))
  await until(() => output.split('\n').includes(phase), `the manager at ${phase}`)
  child.kill('SIGKILL')
  await once(child, 'exit')
}

t.test('a bhyve that died with its manager: its last checkpoint is kept', async (t) => {
  const bhyve = await SimulatedBhyve.start({
    vm: 'vm1',
    memoryBytes: 8 << 20,
    dialect: 'reply',
    writeRate: 8 << 20,
  })
  t.teardown(() => bhyve.stop())
  const root = scratch(t)
  const directory = path.join(root, 'vm1')
  putSet(directory, 'live')
  const older = fs.readFileSync(path.join(directory, 'live.ckp'))
  await killAt(startCreating(t, bhyve, root, 'saving'), 'saving')
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: root })
  t.match(await client.listCheckpoints('vm1'), [{ name: 'live' }], 'bhyve still writes')
  t.match(await bhyve.exited, { signal: 'SIGPIPE' })
  const listed = await client.listCheckpoints('vm1')
  t.match(listed, [
    { name: 'live', state: 'complete' },
    { name: /^live-/, state: 'complete', poweredOff: false },
  ])
  t.ok(fs.readFileSync(path.join(directory, 'live.ckp')).equals(older), 'the older one is as it was')
  t.equal(await client.suspendedCheckpoint('vm1'), undefined, 'its VM may have run on')
  const { removed } = await client.pruneCheckpoints('vm1', { keepLast: 1 })
  t.strictSame(removed, ['live'])
})

t.test('a bhyve that outlives its manager: its checkpoint is not needed', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 1 << 20, dialect: 'descriptor' })
  t.teardown(() => bhyve.stop())
  const root = scratch(t)
  const directory = path.join(root, 'vm1')
  await killAt(startCreating(t, bhyve, root, 'checking'), 'checking')
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: root })
  t.strictSame(await client.listCheckpoints('vm1'), [])
  // It has served a later request.
  await client.createCheckpoint('vm1', { name: 'later' })
  t.match(await client.listCheckpoints('vm1'), [{ name: 'later' }])
  t.strictSame(tree(path.join(directory, '.staging')), [])
})

t.test('a stage that somebody removed is not taken for another one of its name', (t) => {
  const directory = store(t)
  const [gone, other] = [new MadeStage(directory), new MadeStage(directory, { name: 'other' })]
  gone.prepare()
  fs.rmSync(gone.path, { recursive: true })
  other.release()
  fs.renameSync(other.path, gone.path)
  t.throws(() => jobs.settleStage(gone.handle), { code: 'ERR_SYSTEM', message: /somebody removed/ })
  gone.release()
  t.match(list(directory), [{ name: 'other', state: 'complete' }])
  t.end()
})

t.test('a live stage: removed or left, by what its bhyve does', async (t) => {
  const directory = store(t)
  const status = native.processStatus(process.pid)
  if (isFailure(status)) return t.fail('this process lives')
  const alive = { ...nobody, pid: process.pid, startedAt: status.startedAt }
  const long = new Date(Date.now() - 3_600_000)
  const age = (stage: MadeStage): void => {
    for (const file of fs.readdirSync(stage.file('in'))) fs.utimesSync(stage.file(`in/${file}`), long, long)
  }

  const writing = new MadeStage(directory, { poweroff: false, writer: alive })
  writing.release()
  list(directory)
  t.ok(fs.existsSync(writing.path), 'it has yet to answer')
  age(writing)
  t.strictSame(list(directory), [])
  t.notOk(fs.existsSync(writing.path), 'it runs on')

  const partial = new MadeStage(directory, { poweroff: false })
  fs.truncateSync(partial.file('in/ckp.meta'), 10)
  partial.release()
  t.strictSame(list(directory), [], 'what is not complete is not kept')

  const rebooted = new MadeStage(directory, { poweroff: false })
  rebooted.reboot()
  t.strictSame(list(directory), [], 'nothing proves it')
  t.strictSame(tree(path.join(directory, '.staging')), [])

  const linked = new MadeStage(directory, { poweroff: false })
  fs.linkSync(linked.file('in/ckp'), path.join(directory, 'backup'))
  linked.release()
  t.match(list(directory), [{ state: 'complete', poweredOff: false }], 'a second name costs it nothing')
})

/** Each fsync and each rename of this thread from now on, by paths below the VM's directory; a stage is `ID`. */
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

t.test("a suspend's records are on the disk before bhyve gets a byte, even without fsync", async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 1024 * 1024 })
  t.teardown(() => bhyve.stop())
  const root = scratch(t)
  const directory = path.join(root, 'vm1')
  fs.mkdirSync(directory)
  const client = createClientIn(
    { ...realSurroundings, pool: () => inlinePool() },
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

t.test('a pass that makes no holes opens the RAM for reading, and needs no fsync', (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  jobs.collectStage(stage.handle, 'suspend')
  const modes = new Set<number>()
  intercept(t, 'openAt', (_, name, flags) => {
    if (name === 'suspend.ckp') modes.add(Number(flags) & 3)
  })
  const order = recordOrder(t, directory)
  const request = { name: 'suspend', memoryBytes, digest: true, sparsify: false, durable: false }
  t.match(jobs.passWhole(stage.handle, request, new Int32Array(1)), { digests: {} })
  t.strictSame([...modes], [fs.constants.O_RDONLY])
  t.strictSame(order, [])
  stage.release()
  t.end()
})

t.test('a pin that stays with the name is on the disk before the commit', async (t) => {
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

t.test('a pin and the record of a restore are on the disk when their call ends', async (t) => {
  const directory = store(t)
  putSet(directory, 'x')
  const { identity } = jobs.lookAtSet(directory, 'vm1', 'x')
  const mark = { at: new Date().toISOString(), again: false }
  const calls: Record<string, () => unknown> = {
    pin: () => jobs.pinSet(directory, 'vm1', 'x', true),
    record: () => jobs.markRestored(directory, 'vm1', 'x', identity, mark),
    confirm: () => jobs.confirmRestore(directory, 'x', mark),
    'take back': () => jobs.takeBackMark(directory, 'x', mark),
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

t.test('what is kept under a name of its own is on the disk before it has the name', async (t) => {
  for (const poweroff of [true, false]) {
    const directory = store(t)
    const stage = new MadeStage(directory, { poweroff })
    // Of a suspended VM anything is kept, of a VM that ran on only what is complete.
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
    const endings = poweroff ? ['.kern', '.manifest', ''] : ['.kern', '.meta', '.manifest', '']
    const last = [...endings.map((ending) => `sync ${file}${ending}`), 'sync .staging/ID', ...commit]
    const at = order.indexOf(commit[0]!)
    t.strictSame(order.slice(at + 2 - last.length, at + 2), last, kept!.name)
    t.equal(order.slice(0, at).includes(`sync ${file}.rest`), poweroff, 'also what is kept aside')
  }
})

t.test('the copy of a file with a second name is on the disk before it replaces the file', async (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  fs.linkSync(stage.file('in/ckp'), path.join(scratch(t), 'other'))
  stage.release()
  const order = recordOrder(t, directory)
  t.match(list(directory), [{ name: 'suspend', state: 'complete' }])
  const at = order.indexOf('rename .staging/ID/copy -> .staging/ID/suspend.ckp')
  t.equal(order[at - 1], 'sync .staging/ID/copy')
})

t.test('after a failed fsync and a reboot nothing is certain', async (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  jobs.collectStage(stage.handle, 'suspend')
  const restore = intercept(t, 'sync', (descriptor) => {
    const target = fs.readlinkSync(`/proc/self/fd/${String(descriptor)}`)
    return target.endsWith('/suspend.ckp') ? failure('EIO', 'fsync') : undefined
  })
  t.throws(() => jobs.secureStage(stage.handle, 'suspend'), { code: 'ERR_SYSTEM', syscall: 'fsync' })
  restore()
  stage.reboot()
  t.match(list(directory), unproven)
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

t.test('a torn manifest makes no files certain', async (t) => {
  const directory = store(t)
  const stage = new MadeStage(directory)
  stage.prepare()
  fs.truncateSync(stage.file('suspend.ckp.manifest'), 20)
  stage.reboot()
  t.match(list(directory), unproven)
})
