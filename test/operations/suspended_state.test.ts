/** The state that a suspend leaves: how it is found, named, counted and kept when its files are in doubt. */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import t from 'tap'
import { createClient, type Progress } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { createClientIn } from '../../dist/client/client.js'
import { loadNative } from '../../dist/base/native.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import {
  checkpointFiles,
  failure,
  inlinePool,
  intercept,
  rejection,
  scratch,
  tree,
  until,
} from '../support/index.js'
import { Manager, digest, isGone, spoiling, start, watchedPool } from '../support/suspending.js'

const MiB = 1024 * 1024
const native = loadNative()

t.test('suspendedCheckpoint: what a suspended VM has to be restored from', async (t) => {
  const { bhyve, client, root } = await start(t, { writeRate: 2 * MiB })
  t.equal(await client.suspendedCheckpoint('vm1'), undefined, 'nothing')
  await client.createCheckpoint('vm1', { name: 'live' })
  t.equal(await client.suspendedCheckpoint('vm1'), undefined, 'a checkpoint of a VM that ran on is none')
  t.match(await rejection(client.suspendedCheckpoint('')), { code: 'ERR_INVALID_VM_NAME' })
  // Asked as soon as bhyve is gone, while its state is still being published.
  const { runDirectory } = bhyve
  let release: () => void = () => undefined
  const published = new Promise<void>((resolve) => (release = resolve))
  const pool = watchedPool((name) => (name === 'prepareStage' ? published : undefined))
  const slow = createClientIn({ ...hostEnvironment, pool }, { runDirectory, checkpointDirectory: root })
  const suspended = slow.suspend('vm1')
  await bhyve.exited
  let looks = 0
  const counting = watchedPool(
    () => undefined,
    (name) => name === 'suspendedState' && looks++,
  )
  const asking = createClientIn(
    { ...hostEnvironment, pool: counting },
    { runDirectory, checkpointDirectory: root },
  )
  let known: unknown = 'not yet'
  const asked = asking.suspendedCheckpoint('vm1').then((checkpoint) => (known = checkpoint))
  await until(() => looks >= 3, 'looks at a state that is being published')
  t.equal(known, 'not yet')
  release()
  await suspended
  await asked
  t.match(known, { name: 'suspend', poweredOff: true })
})

t.test('the name is taken while the VM is being saved', async (t) => {
  const { bhyve, client, root, directory } = await start(t, { writeRate: 2 * MiB })
  const donor = await start(t)
  await donor.client.createCheckpoint('vm1', { name: 'suspend' })
  let taken = false
  const onProgress = ({ phase }: Progress): void => {
    if (phase !== 'saving' || taken) return
    taken = true
    for (const file of checkpointFiles(donor.directory))
      fs.copyFileSync(path.join(donor.directory, file), path.join(directory, file))
  }
  const error = await rejection(client.suspend('vm1', { ifExists: 'fail', onProgress }))
  t.match(error, { code: 'ERR_CHECKPOINT_EXISTS', vmState: 'off', message: /kept as checkpoint 'suspend-/ })
  t.match(await bhyve.exited, { code: 5 })
  const listed = await client.listCheckpoints('vm1')
  t.match(
    listed.map(({ name, state, poweredOff }) => [name.slice(0, 8), state, poweredOff]).sort(),
    [
      ['suspend', 'complete', false],
      ['suspend-', 'complete', true],
    ].sort(),
  )
  t.equal(error.path, listed.find(({ poweredOff }) => poweredOff)!.path)
  t.same(digest(path.join(directory, 'suspend.ckp')), digest(path.join(donor.directory, 'suspend.ckp')))
  t.match(await createClient({ checkpointDirectory: root }).listStored(), ['vm1'])
})

t.test('two suspends in one root are counted together, and one of them goes through', async (t) => {
  const mount = scratch(t)
  spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=160m', 'tmpfs', mount])
  t.teardown(() => spawnSync('umount', ['-l', mount]))
  const memoryBytes = 64 * MiB
  const runDirectory = scratch(t)
  const both = await Promise.all(
    ['vm1', 'vm2'].map((vm) => SimulatedBhyve.start({ vm, runDirectory, memoryBytes, writeRate: 64 * MiB })),
  )
  for (const bhyve of both) t.teardown(() => bhyve.stop())
  const clients = both.map(() => createClient({ runDirectory, checkpointDirectory: mount }))
  const results = await Promise.allSettled(
    clients.map((client, index) => client.suspend(`vm${index + 1}`, { memoryBytes })),
  )
  const refused = results.flatMap((result) =>
    result.status === 'rejected' ? [result.reason as unknown] : [],
  )
  t.match(refused, [{ code: 'ERR_NO_SPACE', requiredBytes: Number, availableBytes: Number }])
  t.match(await clients[0]!.listStored(), [/^vm[12]$/], 'the other one is saved')
})

t.test('no room for a suspend of unknown size either', async (t) => {
  const mount = scratch(t)
  spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=32m', 'tmpfs', mount])
  t.teardown(() => spawnSync('umount', ['-l', mount]))
  const { bhyve } = await start(t)
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: mount })
  t.match(await rejection(client.suspend('vm1')), { code: 'ERR_NO_SPACE' })
  process.kill(bhyve.pid, 0)
  t.match(await client.createCheckpoint('vm1'), { name: 'checkpoint' }, 'a checkpoint alone may be tried')
})

t.test('a live checkpoint that is slow to be published does not replace the VM', async (t) => {
  const { bhyve, root } = await start(t)
  const options = { runDirectory: bhyve.runDirectory, checkpointDirectory: root }
  let release: () => void = () => undefined
  const published = new Promise<void>((resolve) => (release = resolve))
  let isSaved = false
  const pool = watchedPool((name) => {
    isSaved ||= name === 'prepareStage'
    return name === 'prepareStage' ? published : undefined
  })
  const live = rejection(createClientIn({ ...hostEnvironment, pool }, options).createCheckpoint('vm1'))
  await until(() => isSaved, 'the live checkpoint to be saved')
  const client = createClient(options)
  await client.createCheckpoint('vm1', { poweroff: true })
  release()
  t.match(await live, { code: 'ERR_CHECKPOINT_EXISTS', message: /suspended/ })
  t.match(await client.suspendedCheckpoint('vm1'), { name: 'checkpoint', poweredOff: true })
})

t.test('a pin stays with the name', async (t) => {
  const { client } = await start(t)
  await client.createCheckpoint('vm1', { name: 'suspend' })
  await client.pinCheckpoint('vm1', 'suspend')
  t.match(await client.suspend('vm1'), { pinned: true, poweredOff: true })
})

t.test('the files of a save that bhyve considered successful are never discarded', async (t) => {
  const world = await start(t, { suspendExitDelayMs: 300 })
  const client = spoiling(world, (inFolder) => fs.appendFileSync(path.join(inFolder, 'ckp.kern'), 'x'))
  const error = await rejection(client.suspend('vm1'))
  t.match(error, {
    code: 'ERR_SUSPEND_FAILED',
    vmState: 'off',
    problems: [{ code: 'kernel-size-mismatch' }],
  })
  t.match(await client.listCheckpoints('vm1'), [{ state: 'damaged', poweredOff: true }])
  t.ok(isGone(world.bhyve.pid))
  t.equal(fs.statSync(error.path!).size, MiB, 'its RAM is kept')
})

t.test('a set that cannot be read may be the state', async (t) => {
  const { bhyve, root, client } = await start(t)
  await client.suspend('vm1')
  const target = native as { readStartAt: typeof native.readStartAt }
  const readStartAt = native.readStartAt.bind(native)
  t.teardown(() => (target.readStartAt = readStartAt))
  target.readStartAt = (directory, name, bytes) =>
    name === 'suspend.ckp.manifest'
      ? { errno: os.constants.errno.EIO, syscall: 'read' }
      : readStartAt(directory, name, bytes)
  const pool = inlinePool()
  const options = { runDirectory: bhyve.runDirectory, checkpointDirectory: root }
  const here = createClientIn({ ...hostEnvironment, pool: () => pool }, options)
  const problems = [{ code: 'unreadable', file: 'suspend.ckp.manifest' }]
  t.match(await here.listCheckpoints('vm1'), [{ state: 'damaged', problems }])
  t.match(await rejection(here.suspendedCheckpoint('vm1')), { code: 'ERR_SYSTEM', vm: 'vm1' })
  const since = new Date(Date.now() + 10_000)
  t.equal(await here.suspendedCheckpoint('vm1', { since }), undefined, 'too old to count')
  const second = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: MiB })
  t.teardown(() => second.stop())
  const environment = { ...hostEnvironment, pool: () => pool }
  const again = createClientIn(environment, { ...options, runDirectory: second.runDirectory })
  const file = path.join(root, 'vm1', 'suspend.ckp')
  fs.utimesSync(file, 4e9, 4e9)
  t.match(await rejection(again.createCheckpoint('vm1', { name: 'suspend' })), {
    code: 'ERR_CHECKPOINT_EXISTS',
    path: file,
  })
})

t.test('struct: a state whose name was taken gets one that this bhyve can open', async (t) => {
  const { bhyve, root, directory } = await start(t, { dialect: 'struct' })
  const name = 'n'.repeat(95 - Buffer.byteLength(`${directory}/.ckp`))
  const pool = inlinePool((job) => {
    if (job === 'collectStage') fs.writeFileSync(path.join(directory, `${name}.ckp`), 'taken')
    return undefined
  })
  const options = { runDirectory: bhyve.runDirectory, checkpointDirectory: root, dialect: 'struct' } as const
  const client = createClientIn({ ...hostEnvironment, pool: () => pool }, options)
  const error = await rejection(client.createCheckpoint('vm1', { name, poweroff: true, ifExists: 'fail' }))
  t.match(error, { code: 'ERR_CHECKPOINT_EXISTS', vmState: 'off' })
  t.ok(Buffer.byteLength(error.path!) <= 95, error.path!)
  t.match(await client.suspendedCheckpoint('vm1'), { path: error.path })
})

t.test('the state is on the disk before it is scanned', async (t) => {
  const { bhyve, root } = await start(t)
  const started: string[] = []
  const pool = inlinePool((job) => void started.push(job))
  const options = {
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: root,
    dialect: 'descriptor',
  } as const
  await createClientIn({ ...hostEnvironment, pool: () => pool }, options).suspend('vm1')
  const steps = ['recordWriter', 'collectStage', 'flushStage', 'scanAtOnce', 'prepareStage', 'commitStage']
  t.strictSame(
    started.filter((job) => steps.includes(job)),
    steps,
  )
})

t.test('where nobody can see what became of the VM, what was written stays', async (t) => {
  const { bhyve, root, directory } = await start(t, { fault: { at: 'kernel', kind: 'fail' } })
  let show: (() => void) | undefined
  const pool = inlinePool((job) => {
    if (job === 'collectStage') show = intercept(t, 'processStatus', () => failure('EACCES', 'open'))
    return undefined
  })
  const options = {
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: root,
    dialect: 'descriptor',
  } as const
  const client = createClientIn({ ...hostEnvironment, pool: () => pool }, options)
  const error = await rejection(client.suspend('vm1'))
  t.match(error, { code: 'ERR_SUSPEND_FAILED', vmState: 'unknown', message: /What was written is in/ })
  t.ok(tree(directory).some((entry) => entry.endsWith('/suspend.ckp')))
  show?.()
  process.kill(bhyve.pid, 'SIGKILL')
  await bhyve.exited
  t.match(await client.listCheckpoints('vm1'), [{ state: 'damaged', poweredOff: true, name: /^suspend-/ }])
})

t.test('what others do to the files of a suspend is no failure that bhyve has noticed', async (t) => {
  const spoils: Record<string, (inFolder: string) => void> = {
    'not-a-regular-file': (inFolder) => {
      fs.rmSync(path.join(inFolder, 'ckp.meta'))
      fs.symlinkSync('/nonexistent', path.join(inFolder, 'ckp.meta'))
    },
    'foreign-format': (inFolder) => {
      const memory = fs.openSync(path.join(inFolder, 'ckp'), 'r+')
      fs.writeSync(memory, 'BHYVE-CHECKPOINT-MANIFEST-1', 0)
      fs.closeSync(memory)
      fs.truncateSync(path.join(inFolder, 'ckp.meta'), 100)
    },
  }
  const cases = Object.entries(spoils).map(async ([code, spoil]) => {
    const world = await start(t, { suspendExitDelayMs: 300 })
    const error = await rejection(spoiling(world, spoil).suspend('vm1'))
    t.match(error, { code: 'ERR_SUSPEND_FAILED', vmState: 'off', problems: [{ code }] }, code)
    t.equal(fs.statSync(error.path!).size, MiB, `${code}: its RAM is kept`)
  })
  await Promise.all(cases)
})

t.test('who is queued behind a suspend and cannot see what it got has not been served', async (t) => {
  const world = await start(t, { writeRate: MiB / 2 })
  const { bhyve, root } = world
  const manager = new Manager(t, world, 'saving')
  await manager.reached('saving')
  await manager.kill()
  let show: (() => void) | undefined
  const pool = inlinePool((job) => {
    if (job === 'recordWriter') process.kill(bhyve.pid, 'SIGKILL')
    if (job === 'isUntouched')
      show = intercept(t, 'readDirectory', (_, limit) => (limit === 1 ? failure('EIO', 'read') : undefined))
    return undefined
  })
  const options = {
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: root,
    dialect: 'descriptor',
  } as const
  const client = createClientIn({ ...hostEnvironment, pool: () => pool }, options)
  t.match(await rejection(client.createCheckpoint('vm1')), { code: 'ERR_CHECKPOINT_FAILED' })
  show?.()
  const left = [{ state: 'damaged', poweredOff: true, name: /^suspend-/ }]
  t.match(await client.listCheckpoints('vm1'), left, 'what is left of the VM is kept')
})
