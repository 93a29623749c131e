/** The suspended state: how it is found and named, its disk space, and how it is kept if its files are in doubt. */
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
  readOneByOne,
  rejection,
  scratch,
  tree,
  until,
} from '../support/index.js'
import { Manager, digest, isGone, spoiling, start, watchedPool } from '../support/suspending.js'

const MiB = 1024 * 1024
const native = loadNative()

t.test('suspendedCheckpoint: returns the checkpoint that a suspended VM must be restored from', async (t) => {
  const { bhyve, client, root } = await start(t, { writeRate: 2 * MiB })
  t.equal(await client.suspendedCheckpoint('vm1'), undefined, 'no checkpoints')
  await client.createCheckpoint('vm1', { name: 'live' })
  t.equal(await client.suspendedCheckpoint('vm1'), undefined, 'a live checkpoint does not count')
  t.match(await rejection(client.suspendedCheckpoint('')), { code: 'ERR_INVALID_VM_NAME' })
  // Call it as soon as bhyve has exited, while the state is still being published.
  const { runDirectory } = bhyve
  let release: () => void = () => undefined
  const published = new Promise<void>((resolve) => (release = resolve))
  const pool = watchedPool((name) => (name === 'prepareStage' ? published : undefined))
  const slow = createClientIn({ ...hostEnvironment, pool }, { runDirectory, checkpointDirectory: root })
  const suspended = slow.suspend('vm1')
  await bhyve.exited
  let polls = 0
  const counting = watchedPool(
    () => undefined,
    (name) => name === 'suspendedState' && polls++,
  )
  const polling = createClientIn(
    { ...hostEnvironment, pool: counting },
    { runDirectory, checkpointDirectory: root },
  )
  let known: unknown = 'not yet'
  const pending = polling.suspendedCheckpoint('vm1').then((checkpoint) => (known = checkpoint))
  await until(() => polls >= 3, 'polls of a state that is being published')
  t.equal(known, 'not yet')
  release()
  await suspended
  await pending
  t.match(known, { name: 'suspend', poweredOff: true })
})

t.test('suspend: uses another name if its name is taken during the save', async (t) => {
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

t.test('suspend: two suspends in one root share the reserved space, and one of them succeeds', async (t) => {
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
  const rejected = results.flatMap((result) =>
    result.status === 'rejected' ? [result.reason as unknown] : [],
  )
  t.match(rejected, [{ code: 'ERR_NO_SPACE', requiredBytes: Number, availableBytes: Number }])
  t.match(await clients[0]!.listStored(), [/^vm[12]$/], 'the other VM is saved')
})

t.test('suspend: requires free space even if the RAM size is unknown', async (t) => {
  const mount = scratch(t)
  spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=32m', 'tmpfs', mount])
  t.teardown(() => spawnSync('umount', ['-l', mount]))
  const { bhyve } = await start(t)
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: mount })
  t.match(await rejection(client.suspend('vm1')), { code: 'ERR_NO_SPACE' })
  process.kill(bhyve.pid, 0)
  t.match(await client.createCheckpoint('vm1'), { name: 'checkpoint' }, 'a live checkpoint may be tried')
})

t.test('create: a live checkpoint that is published late does not replace a suspended state', async (t) => {
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

t.test('suspend: keeps the pin of the name', async (t) => {
  const { client } = await start(t)
  await client.createCheckpoint('vm1', { name: 'suspend' })
  await client.pinCheckpoint('vm1', 'suspend')
  t.match(await client.suspend('vm1'), { pinned: true, poweredOff: true })
})

t.test('suspend: never discards the files of a save that bhyve considered successful', async (t) => {
  const world = await start(t, { suspendExitDelayMs: 300 })
  const client = spoiling(world, (inbox) => fs.appendFileSync(path.join(inbox, 'ckp.kern'), 'x'))
  const error = await rejection(client.suspend('vm1'))
  t.match(error, {
    code: 'ERR_SUSPEND_FAILED',
    vmState: 'off',
    problems: [{ code: 'kernel-size-mismatch' }],
  })
  t.match(await client.listCheckpoints('vm1'), [{ state: 'damaged', poweredOff: true }])
  t.ok(isGone(world.bhyve.pid))
  t.equal(fs.statSync(error.path!).size, MiB, 'the RAM file is kept')
})

t.test('suspendedCheckpoint: rejects when an unreadable checkpoint may be the state', async (t) => {
  const { bhyve, root, client } = await start(t)
  await client.suspend('vm1')
  readOneByOne(t)
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
  t.equal(await here.suspendedCheckpoint('vm1', { since }), undefined, 'the checkpoint is older than since')
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

t.test('suspend: the new name of a struct state is short enough for bhyve -r', async (t) => {
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

t.test('suspend: fsyncs the state before the scan', async (t) => {
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

t.test('suspend: keeps the files when the state of the VM cannot be determined', async (t) => {
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
  t.match(error, {
    code: 'ERR_SUSPEND_FAILED',
    vmState: 'unknown',
    message: /The files that bhyve wrote are in '.*'/,
  })
  t.ok(tree(directory).some((entry) => entry.endsWith('/suspend.ckp')))
  show?.()
  process.kill(bhyve.pid, 'SIGKILL')
  await bhyve.exited
  t.match(await client.listCheckpoints('vm1'), [{ state: 'damaged', poweredOff: true, name: /^suspend-/ }])
})

t.test('suspend: damage by other processes does not count as a failure that bhyve noticed', async (t) => {
  const spoils: Record<string, (inbox: string) => void> = {
    'not-a-regular-file': (inbox) => {
      fs.rmSync(path.join(inbox, 'ckp.meta'))
      fs.symlinkSync('/nonexistent', path.join(inbox, 'ckp.meta'))
    },
    'foreign-format': (inbox) => {
      const memory = fs.openSync(path.join(inbox, 'ckp'), 'r+')
      fs.writeSync(memory, 'BHYVE-CHECKPOINT-MANIFEST-1', 0)
      fs.closeSync(memory)
      fs.truncateSync(path.join(inbox, 'ckp.meta'), 100)
    },
  }
  const cases = Object.entries(spoils).map(async ([code, spoil]) => {
    const world = await start(t, { suspendExitDelayMs: 300 })
    const error = await rejection(spoiling(world, spoil).suspend('vm1'))
    t.match(error, { code: 'ERR_SUSPEND_FAILED', vmState: 'off', problems: [{ code }] }, code)
    t.equal(fs.statSync(error.path!).size, MiB, `${code}: the RAM file is kept`)
  })
  await Promise.all(cases)
})

t.test("create: behind a suspend, keeps the VM's state if bhyve ends and wrote nothing", async (t) => {
  const world = await start(t, { writeRate: MiB / 2 })
  const { bhyve, root } = world
  const manager = new Manager(t, world, 'saving')
  await manager.reached('saving')
  await manager.kill()
  const pool = inlinePool((job) => {
    if (job === 'recordWriter') process.kill(bhyve.pid, 'SIGKILL')
    return undefined
  })
  const options = {
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: root,
    dialect: 'descriptor',
  } as const
  const client = createClientIn({ ...hostEnvironment, pool: () => pool }, options)
  t.match(await rejection(client.createCheckpoint('vm1')), { code: 'ERR_CHECKPOINT_FAILED' })
  const left = [{ state: 'damaged', poweredOff: true, name: /^suspend-/ }]
  t.match(await client.listCheckpoints('vm1'), left, 'the files of the VM are kept')
})
