/** Tests of the memory stage, from outside: where bhyve writes, what is published, and what is left. */
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import t, { type Test } from 'tap'
import { type Checkpoint, type CheckpointClient, type ClientOptions, createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve, SimulatedFleet, type SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { loadNative } from '../../dist/base/native.js'
import { reasonForRetry } from '../../dist/operations/saving/memory_stage.js'
import { forAnyUser } from '../support/any_user.js'
import { mounted } from '../support/image_world.js'
import { childEnvironment, rejection, scratch, tree, until } from '../support/index.js'

const MiB = 1024 * 1024
const tmpfs = mounted(t, 'tmpfs', 64 * MiB)
const needsTmpfs = { skip: tmpfs.skip }
const nobody = 65534
const native = loadNative()

interface World {
  bhyve: SimulatedBhyve
  client: CheckpointClient
  memoryStage: string
  checkpointDirectory: string
}

async function world(
  t: Test,
  guest: Partial<SimulatorOptions> = {},
  options: Partial<Omit<ClientOptions, 'memoryStage'>> & { maxBytes?: number; memoryStage?: string } = {},
): Promise<World> {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 24 * MiB, ...guest })
  t.teardown(() => bhyve.stop())
  const { maxBytes, memoryStage = path.join(tmpfs.directory, path.basename(scratch(t))), ...others } = options
  const checkpointDirectory = scratch(t)
  const client = createClient({
    ...{ runDirectory: bhyve.runDirectory, checkpointDirectory, ...others },
    memoryStage: { directory: memoryStage, maxBytes },
  })
  return { bhyve, client, memoryStage, checkpointDirectory }
}

async function assertIntact(t: Test, client: CheckpointClient, { name }: Checkpoint): Promise<void> {
  t.match(await client.verifyCheckpoint('vm1', name, { depth: 'content' }), { ok: true, depth: 'content' })
}

function contentOf({ files }: Checkpoint): Buffer[] {
  return [files.memory, files.kernel, files.metadata].map((file) => fs.readFileSync(file))
}

t.test('memory stage: a checkpoint is the same as on the disk', needsTmpfs, async (t) => {
  for (const dialect of ['descriptor', 'path', 'struct'] as const) {
    const { bhyve, client, memoryStage } = await world(t, { dialect })
    const onDisk = await createClient({
      runDirectory: bhyve.runDirectory,
      checkpointDirectory: scratch(t),
    }).createCheckpoint('vm1')
    const before = Date.now()
    const created = await client.createCheckpoint('vm1', { memoryBytes: 24 * MiB })
    t.match(created, { stage: 'memory', storedBytes: onDisk.storedBytes }, dialect)
    t.notOk('diskReason' in created)
    t.equal('stage' in onDisk, false, 'a client without a memory stage reports none')
    t.ok(created.createdAt.getTime() >= before - 10 && created.createdAt.getTime() <= Date.now())
    t.strictSame(contentOf(created), contentOf(onDisk))
    await assertIntact(t, client, created)
    t.strictSame(tree(memoryStage), [], 'nothing is left in memory')
    t.match(await client.createCheckpoint('vm1'), { stage: 'memory' }, 'the size is known from the last one')
  }
})

t.test('memory stage: every option of the pass', needsTmpfs, async (t) => {
  const { client, memoryStage } = await world(t)
  for (const digest of [true, false])
    for (const sparsify of [true, false]) {
      const options = { name: `${digest} ${sparsify}`, memoryBytes: 24 * MiB, digest, sparsify }
      const created = await client.createCheckpoint('vm1', { ...options, fsync: sparsify })
      t.match(created, { stage: 'memory' })
      t.equal(created.storedBytes >= 24 * MiB, !sparsify, 'zeros are holes, or are written')
      t.match(await client.verifyCheckpoint('vm1', options.name, { depth: 'content' }), {
        ok: true,
        depth: digest ? 'content' : 'structure',
      })
    }
  t.strictSame(tree(memoryStage), [])
})

t.test('memory stage: never for a suspend, nor for a guest of unknown size', needsTmpfs, async (t) => {
  const { client } = await world(t)
  t.match(await client.createCheckpoint('vm1'), { stage: 'disk', diskReason: 'memory-size-unknown' })
  const suspended = await client.createCheckpoint('vm1', { name: 'off', poweroff: true })
  t.match(suspended, { stage: 'disk', diskReason: 'suspend', poweredOff: true })
})

t.test('memory stage: a VM that was started again may have more RAM', needsTmpfs, async (t) => {
  const { bhyve, client, memoryStage } = await world(t, { memoryBytes: 2 * MiB }, { maxBytes: 4 * MiB })
  t.match(await client.createCheckpoint('vm1'), { diskReason: 'memory-size-unknown' })
  t.match(await client.createCheckpoint('vm1'), { stage: 'memory' })
  const { runDirectory } = bhyve
  await bhyve.stop()
  const larger = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 24 * MiB, runDirectory })
  t.teardown(() => larger.stop())
  const first = await client.createCheckpoint('vm1')
  t.match(first, { stage: 'disk', diskReason: 'memory-size-unknown', memoryBytes: 24 * MiB })
  t.match(await client.createCheckpoint('vm1'), { stage: 'disk', diskReason: 'memory-stage-full' })
  t.strictSame(tree(memoryStage), [])
})

t.test('memory stage: a lock that another process keeps', needsTmpfs, async (t) => {
  const { client, memoryStage } = await world(t)
  const entries = path.join(memoryStage, '.memory-stage')
  fs.mkdirSync(entries, { recursive: true, mode: 0o700 })
  fs.chmodSync(memoryStage, 0o700)
  const descriptor = native.openPath(entries, fs.constants.O_DIRECTORY) as number
  native.lock(descriptor, 'exclusive')
  const created = await client.createCheckpoint('vm1', { memoryBytes: 24 * MiB })
  native.close(descriptor)
  t.match(created, { stage: 'disk', diskReason: 'memory-stage-busy' })
})

t.test('memory stage: a path that the dialect has no room for', needsTmpfs, async (t) => {
  const { bhyve } = await world(t, { dialect: 'struct' })
  const directory = path.join(tmpfs.directory, 'x'.repeat(80))
  const long = createClient({
    ...{ runDirectory: bhyve.runDirectory, checkpointDirectory: scratch(t), memoryStage: { directory } },
  })
  t.match(await long.createCheckpoint('vm1', { memoryBytes: 24 * MiB }), {
    stage: 'disk',
    diskReason: 'path-too-long',
  })
})

t.test('memory stage: twenty guests whose RAM is three times as much', needsTmpfs, async (t) => {
  const maxBytes = 20 * MiB
  const { bhyve, client, memoryStage } = await world(t, { memoryBytes: 3 * MiB }, { maxBytes })
  const names = Array.from({ length: 19 }, (_, index) => `vm${index + 2}`)
  const { runDirectory } = bhyve
  const vms = names.map((vm) => ({ vm, memoryBytes: 3 * MiB, writeRate: 30 * MiB }))
  const fleet = await SimulatedFleet.start({ vms, runDirectory })
  t.teardown(() => fleet.stop())
  let most = 0
  const timer = setInterval(() => (most = Math.max(most, usedIn(tmpfs.directory))), 2)
  t.teardown(() => clearInterval(timer))
  const created = await Promise.all(
    ['vm1', ...names].map((vm) => client.createCheckpoint(vm, { memoryBytes: 3 * MiB })),
  )
  const inMemory = created.filter(({ stage }) => stage === 'memory')
  const onDisk = created.filter(({ diskReason }) => diskReason === 'memory-stage-full')
  t.equal(inMemory.length + onDisk.length, 20)
  t.ok(inMemory.length >= 6, `${inMemory.length} in memory`)
  t.ok(onDisk.length > 0, `${onDisk.length} on the disk`)
  t.ok(most <= maxBytes + MiB, `at most ${most} bytes in memory`)
  t.strictSame(tree(memoryStage), [])
})

/** What the whole tmpfs holds: adding up its files would race with their removal. */
function usedIn(directory: string): number {
  const { blocks, bfree, bsize } = fs.statfsSync(directory)
  return (blocks - bfree) * bsize
}

t.test('memory stage: a tmpfs that fills up while bhyve writes', needsTmpfs, async (t) => {
  const { client, memoryStage, bhyve } = await world(t, { memoryBytes: 80 * MiB })
  const ids = new Set<string>()
  for (const options of [
    {},
    { onFrozen: ({ id }: { id: string }) => void ids.add(id), freezeTimeout: 60_000 },
  ]) {
    const created = await client.createCheckpoint('vm1', { memoryBytes: MiB, ...options })
    t.match(created, { stage: 'disk', diskReason: 'filled-up', memoryBytes: 80 * MiB })
    await assertIntact(t, client, created)
    t.strictSame(tree(memoryStage), [])
    await client.destroyAll('vm1')
  }
  t.ok(ids.size >= 2, 'the function is called for both')
  t.match(await client.listVirtualMachines(), [{ state: 'running', pid: bhyve.pid }])
})

t.test('memory stage: a tmpfs whose inodes are used up', needsTmpfs, async (t) => {
  const reasons = new Set<string>()
  for (let inodes = 4; inodes <= 16; inodes += 2) {
    const small = mounted(t, 'tmpfs', 64 * MiB, `nr_inodes=${inodes}`)
    const { client } = await world(t, { memoryBytes: 10 * MiB }, { memoryStage: small.directory })
    for (const options of [{}, { onFrozen: () => undefined, freezeTimeout: 60_000 }]) {
      const created = await client.createCheckpoint('vm1', { memoryBytes: 10 * MiB, ...options })
      reasons.add(created.diskReason ?? 'none')
      await assertIntact(t, client, created)
      t.strictSame(tree(small.directory), [], `${inodes} inodes`)
    }
  }
  t.strictSame([...reasons], ['memory-stage-full', 'none'])
})

t.test('memory stage: a tmpfs that others fill', needsTmpfs, async (t) => {
  const small = mounted(t, 'tmpfs', 64 * MiB)
  const { client } = await world(t, { writeRate: 12 * MiB }, { memoryStage: path.join(small.directory, 'm') })
  const filler = path.join(small.directory, 'filler')
  for (const [fillAt, expected] of [
    ['checking', { stage: 'memory' }],
    ['saving', { diskReason: 'filled-up' }],
  ] as const) {
    const created = await client.createCheckpoint('vm1', {
      memoryBytes: 24 * MiB,
      onProgress: ({ phase }) => {
        if (phase === fillAt && !fs.existsSync(filler)) fill(filler)
      },
    })
    t.match(created, expected, fillAt)
    await assertIntact(t, client, created)
    fs.rmSync(filler)
  }
})

function fill(file: string): void {
  const descriptor = fs.openSync(file, 'w')
  try {
    for (;;) fs.writeSync(descriptor, Buffer.alloc(MiB))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error
  } finally {
    fs.closeSync(descriptor)
  }
}

t.test('memory stage: a bhyve that does not see it', (t) => {
  const peer = { uid: 0, pid: process.pid, startedAt: undefined }
  const answer = { peer, dialect: 'path' } as Parameters<typeof reasonForRetry>[1]
  const collected = { untouched: true, isFull: false, writtenBytes: 0 } as Parameters<
    typeof reasonForRetry
  >[2]
  const stage = { isInMemory: true, memoryBytes: 1 }
  t.equal(reasonForRetry(stage, answer, collected), 'not-visible')
  t.equal(reasonForRetry(stage, { ...answer, dialect: 'descriptor' }, collected), undefined)
  t.equal(reasonForRetry({ ...stage, isInMemory: false }, answer, collected), undefined)
  t.end()
})

t.test('memory stage: a size whose time anybody can set does not count', needsTmpfs, async (t) => {
  const { bhyve, client } = await world(t)
  const { files } = await client.createCheckpoint('vm1')
  fs.rmSync(files.manifest!)
  t.match(await client.createCheckpoint('vm1'), { diskReason: 'memory-size-unknown' }, 'no manifest')
  const text = fs.readFileSync(files.manifest!, 'utf8')
  fs.writeFileSync(files.manifest!, text.replace(JSON.stringify(os.hostname()), '"another"'))
  t.match(await client.createCheckpoint('vm1'), { diskReason: 'memory-size-unknown' }, 'of another host')
  const later = new Date(Date.now() + 60_000)
  fs.utimesSync(files.memory, later, later)
  const { runDirectory } = bhyve
  await bhyve.stop()
  const larger = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 48 * MiB, runDirectory })
  t.teardown(() => larger.stop())
  t.match(await client.createCheckpoint('vm1'), { diskReason: 'memory-size-unknown' }, 'another time')
})

t.test('memory stage: other failures of bhyve are not tried again', needsTmpfs, async (t) => {
  const { client, bhyve, memoryStage } = await world(t)
  await client.createCheckpoint('vm1', { memoryBytes: 24 * MiB })
  await bhyve.setFault({ at: 'device', kind: 'fail' })
  const error = await rejection(client.createCheckpoint('vm1'))
  t.match(error, { code: 'ERR_CHECKPOINT_FAILED', vmState: 'running' })
  t.strictSame(tree(memoryStage), [])
  t.match(await client.listCheckpoints('vm1'), [{ state: 'complete' }], 'the previous one is unchanged')
})

t.test('memory stage: a disk that is full during the copy', needsTmpfs, async (t) => {
  const small = mounted(t, 'tmpfs', 160 * MiB)
  const { client, memoryStage } = await world(
    t,
    { memoryBytes: 24 * MiB, zeroFraction: 0 },
    { checkpointDirectory: small.directory },
  )
  const first = await client.createCheckpoint('vm1', { memoryBytes: 24 * MiB })
  const filler = path.join(small.directory, 'filler')
  const error = await rejection(
    client.createCheckpoint('vm1', {
      onProgress: ({ phase }) => {
        if (phase === 'checking' && !fs.existsSync(filler)) fs.writeFileSync(filler, Buffer.alloc(125 * MiB))
      },
    }),
  )
  t.match(error, { code: 'ERR_NO_SPACE' })
  fs.rmSync(filler)
  await assertIntact(t, client, first)
  t.strictSame(tree(memoryStage), [])
  t.strictSame(tree(path.join(small.directory, 'vm1/.staging')), [])
})

t.test('memory stage: a cancel leaves nothing in memory', needsTmpfs, async (t) => {
  const { client, memoryStage } = await world(t)
  for (const phase of ['saving', 'checking', 'digesting', 'syncing'] as const) {
    const controller = new AbortController()
    const cancelled = client.createCheckpoint('vm1', {
      memoryBytes: 24 * MiB,
      signal: controller.signal,
      onProgress: (progress) => (progress.phase === phase ? controller.abort() : undefined),
    })
    await t.rejects(cancelled, { name: 'AbortError' }, phase)
    await client.idle()
    t.strictSame(tree(memoryStage), [], phase)
  }
  t.strictSame(await client.listCheckpoints('vm1'), [])
})

t.test(
  'memory stage: a directory that cannot be used is refused before anything is sent',
  needsTmpfs,
  async (t) => {
    const { bhyve } = await world(t)
    const runDirectory = bhyve.runDirectory
    const using = (directory: string): Promise<unknown> =>
      createClient({
        runDirectory,
        checkpointDirectory: scratch(t),
        memoryStage: { directory },
      }).createCheckpoint('vm1', { memoryBytes: 24 * MiB })
    const onDisk = path.join(scratch(t), 'here')
    t.match(await rejection(using(onDisk)), {
      code: 'ERR_INVALID_OPTION',
      message: /tmpfs/,
    })
    t.equal(fs.existsSync(onDisk), false, 'nothing is created')
    const open = path.join(tmpfs.directory, 'open')
    fs.mkdirSync(open)
    fs.chmodSync(open, 0o777)
    t.match(await rejection(using(open)), { code: 'ERR_PERMISSION', message: /no other user may write/ })
    const link = path.join(tmpfs.directory, 'link')
    fs.symlinkSync(scratch(t), link)
    t.match(await rejection(using(link)), { code: 'ERR_SYSTEM' }, 'a link is not followed')
    t.match(await rejection(using(path.join(tmpfs.directory, 'none/below'))), {
      code: 'ERR_INVALID_OPTION',
      message: /does not exist/,
    })
    for (const bad of ['relative', '/', '', 7])
      t.throws(() => createClient({ memoryStage: { directory: bad as string } }), {
        code: 'ERR_INVALID_OPTION',
      })
    for (const inside of ['/c', '/c/memory', '/c/vm1/../x'])
      t.throws(() => createClient({ checkpointDirectory: '/c', memoryStage: { directory: inside } }), {
        code: 'ERR_INVALID_OPTION',
        message: /must not be in the checkpoint directory/,
      })
    for (const bad of [0, -1, 1.5, '1'])
      t.throws(() => createClient({ memoryStage: { directory: '/x', maxBytes: bad as number } }), {
        code: 'ERR_INVALID_OPTION',
      })
  },
)

t.test('memory stage: a bhyve of another user', needsTmpfs, async (t) => {
  const directory = scratch(t)
  fs.chmodSync(directory, 0o755)
  const runDirectory = path.join(directory, 'run')
  fs.mkdirSync(runDirectory)
  fs.chownSync(runDirectory, nobody, nobody)
  const child = spawn(process.execPath, [forAnyUser('bhyve-as-user.mjs'), runDirectory, String(nobody)], {
    // Discard the output: the test runner's preload cannot write as another user and reports that.
    stdio: ['pipe', 'ignore', 'ignore'],
    env: childEnvironment(),
  })
  t.teardown(() => child.kill('SIGKILL'))
  await until(() => fs.existsSync(path.join(runDirectory, 'vm1')), 'the socket')
  const client = createClient({
    ...{ runDirectory, checkpointDirectory: path.join(directory, 'c'), dialect: 'descriptor' },
    ...{ trustedUids: [0, nobody], memoryStage: { directory: path.join(tmpfs.directory, 'other user') } },
  })
  const created = await client.createCheckpoint('vm1', { memoryBytes: MiB })
  t.match(created, { stage: 'memory' })
  await assertIntact(t, client, created)
  t.strictSame(
    Object.values(created.files).map((file) => fs.statSync(file).uid),
    [0, 0, 0, 0],
    'the other user can change none of the files',
  )
})
