/** Image files are put back to any snapshot, whenever the process is killed, and cloned for other VMs. */
import { spawnSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { CheckpointError } from 'bhyve-checkpoint'
import { childEnvironment, failure, intercept, rejection, tree } from '../../../support/index.js'
import {
  type Captured,
  contentOf,
  type FileSystem,
  MiB,
  mounted,
  never,
  snapshotsOf,
  World,
} from '../../../support/image_world.js'

const file = {
  xfs: mounted(t, 'xfs', 512 * MiB),
  btrfs: mounted(t, 'btrfs', 512 * MiB),
  tmpfs: mounted(t, 'tmpfs', 64 * MiB),
}
const script = fileURLToPath(new URL('../../../support/killed.mjs', import.meta.url))

/** A test on each of these file systems. tmpfs cannot clone blocks. */
function on(types: FileSystem[], title: string, body: (t: Test, at: Place) => Promise<void>): void {
  for (const type of types) {
    const { skip, directory } = file[type]
    t.test(`${type}: ${title}`, { skip }, (t) =>
      body(t, { directory, options: { allowCopy: type === 'tmpfs' } }),
    )
  }
}

interface Place {
  directory: string
  options: { allowCopy: boolean }
}

const rolledBack = 'first of 0; first of 1;'
const present = 'second of 0; second of 1;'

on(['xfs', 'btrfs', 'tmpfs'], 'rollback to any of five snapshots, in any order', async (t, at) => {
  const world = new World(at.directory)
  const captured: Captured[] = []
  for (let count = 0; count < 5; count++) {
    world.write(`state ${count}`)
    captured.push(await world.capture(at.options))
  }
  world.write('latest')
  for (const index of [2, 0, 4, 4, 1, 3, 0]) {
    const before = world.content
    const id = randomUUID()
    const kept = await world.rollback(captured[index]!, id)
    t.strictSame(
      kept,
      world.images.map((image) => `${image}.${id}`),
    )
    t.equal(world.content, `state ${index} of 0; state ${index} of 1;`)
    t.equal(contentOf(...kept), before, 'the state before it is kept')
    // The guest continues to write, which must not change a snapshot.
    world.write(`after ${index}`)
    for (const [other, { record, owner }] of captured.entries()) {
      t.strictSame(await world.provider.missing(record, owner), [])
      t.equal(contentOf(...snapshotsOf(captured[other]!)), `state ${other} of 0; state ${other} of 1;`)
    }
  }
})

on(['xfs'], 'rollback keeps owner and mode, and follows links', async (t, at) => {
  const world = new World(at.directory)
  const link = path.join(world.root, 'links', 'disk.img')
  fs.mkdirSync(path.dirname(link))
  fs.symlinkSync('../disk0.img', link)
  fs.chownSync(world.images[0], 1234, 4321)
  fs.chmodSync(world.images[0], 0o640)
  const captured = await world.capture({ files: [link, world.images[0]] })
  world.write('second')
  const id = randomUUID()
  t.strictSame(await world.rollback(captured, id), [`${world.images[0]}.${id}`], 'the image is kept once')
  t.equal(fs.readlinkSync(link), '../disk0.img')
  t.equal(contentOf(link, `${world.images[0]}.${id}`), 'first of 0; second of 0;')
  const { uid, gid, mode } = fs.statSync(world.images[0])
  t.strictSame([uid, gid, mode & 0o7777], [1234, 4321, 0o640])
  const clones = await world.provider.clone(captured.record, { as: 'vm2', signal: never }, captured.owner)
  const copy = `${world.images[0]}.vm2`
  t.strictSame(
    [...clones],
    [
      [link, copy],
      [world.images[0], copy],
    ],
  )
  const status = fs.statSync(copy)
  t.strictSame([status.uid, status.gid, status.mode & 0o7777], [1234, 4321, 0o640])
})

/** Runs jobs in a process that is killed before its change number `at`. Returns true if it was not killed. */
function runKilled(at: number, work: { job: string; args: unknown[]; stops?: true }[]): boolean {
  const { stdout, stderr, signal } = spawnSync(process.execPath, [script, String(at), JSON.stringify(work)], {
    encoding: 'utf8',
    env: childEnvironment(),
  })
  if (stdout === 'done') return true
  if (signal !== 'SIGKILL') throw new Error(stderr)
  return false
}

function rollbackJobs({ record, owner }: Captured, id: string): Parameters<typeof runKilled>[1] {
  const args = [record, owner, id]
  return [
    { job: 'prepareRollback', args, stops: true },
    { job: 'commitRollback', args },
  ]
}

on(
  ['xfs', 'tmpfs'],
  'rollback is finished after a kill between any two changes of the file system',
  async (t, at) => {
    const world = new World(at.directory, { imageBytes: 8192 })
    const captured = await world.capture(at.options)
    let kills = 0
    for (let call = 1; ; call++) {
      world.write('second')
      const id = randomUUID()
      const isDone = runKilled(call, rollbackJobs(captured, id))
      if (!isDone && call % 4 === 0) runKilled(call / 4, rollbackJobs(captured, id))
      const kept = world.images.map((image) => `${image}.${id}`)
      for (const [index, image] of world.images.entries()) {
        const existing = [kept[index]!, image].find((one) => fs.existsSync(one))
        if (contentOf(existing!) !== `second of ${index};`) t.fail(`call ${call}: the present image is lost`)
      }
      const result = await world.rollback(captured, id)
      if (world.content !== rolledBack || contentOf(...kept) !== present)
        t.fail(`call ${call}: ${world.content} ${contentOf(...kept)}`)
      if (JSON.stringify(result) !== JSON.stringify(kept)) t.fail(`call ${call}: ${result.join()}`)
      const left = fs.readdirSync(world.root).filter((name) => name.endsWith('.new'))
      if (left.length > 0) t.fail(`call ${call}: ${left.join()}`)
      for (const image of kept) fs.unlinkSync(image)
      if (isDone) break
      kills++
    }
    t.comment(`${kills} kills`)
    t.ok(kills >= 16, 'the calls were counted')
    t.equal(contentOf(...snapshotsOf(captured)), rolledBack)
  },
)

on(['xfs'], 'remove finds everything after a kill between any two changes of a capture', async (t, at) => {
  const world = new World(at.directory, { imageBytes: 8192 })
  let kills = 0
  for (let call = 1; ; call++) {
    const owner = world.owner()
    const { planned } = await world.prepare(owner, at.options)
    const captures = world.images.map((image, index) => {
      const { dev, ino } = fs.statSync(image)
      return { image, identity: `${dev}:${ino}`, name: String(index), copied: at.options.allowCopy }
    })
    const isDone = runKilled(call, [
      { job: 'captureImages', args: [captures, owner], stops: true },
      { job: 'finishSnapshots', args: [['0', '1'], owner] },
      { job: 'removeSnapshots', args: [owner] },
    ])
    await world.provider.remove(planned, owner)
    if (tree(world.directory).length > 0) t.fail(`call ${call}: ${tree(world.directory).join()}`)
    if (isDone) break
    kills++
  }
  t.ok(kills >= 16, `${kills} kills`)
  t.equal(world.content, rolledBack)
})

on(['tmpfs'], 'rollback: a full file system changes nothing', async (t, at) => {
  const world = new World(at.directory, { imageBytes: MiB })
  const captured = await world.capture(at.options)
  world.write('second')
  const filler = path.join(at.directory, 'filler')
  const { bavail, bsize } = fs.statfsSync(at.directory)
  fs.writeFileSync(filler, Buffer.alloc(bavail * bsize - 1.5 * MiB))
  t.match(await rejection(world.rollback(captured)), { code: 'ERR_NO_SPACE', unchanged: true })
  t.match(await rejection(cloneAs(world, captured, 'vm2')), { code: 'ERR_NO_SPACE' })
  t.equal(world.content, present)
  t.strictSame(fs.readdirSync(world.root).sort(), ['checkpoints', 'disk0.img', 'disk1.img'])
  fs.rmSync(filler)
})

on(['xfs'], 'rollback: an error at any call changes nothing or can be repeated', async (t, at) => {
  const world = new World(at.directory, { imageBytes: 8192 })
  const captured = await world.capture()
  const calls = ['openPath', 'openAt', 'statusAt', 'cloneFile', 'sync', 'renameAt'] as const
  const unchanged = new Set<string>()
  for (const name of calls) {
    for (let count = 1; ; count++) {
      world.write('second')
      const id = randomUUID()
      let left = count
      const end = intercept(t, name, () => (--left === 0 ? failure('EIO', name) : undefined))
      const error = await world.rollback(captured, id).catch((failed: unknown) => failed)
      end()
      const isOver = left > 0
      if (!isOver) t.match(error, { code: 'ERR_SYSTEM' }, `${name} ${count}`)
      if (error instanceof CheckpointError && error.unchanged === true) {
        unchanged.add(name)
        const begun = fs.readdirSync(world.root).filter((one) => one.includes(id))
        t.strictSame(begun, [], `${name} ${count}: nothing is left`)
      }
      await world.rollback(captured, id)
      t.equal(world.content, rolledBack)
      const kept = world.images.map((image) => `${image}.${id}`)
      t.equal(contentOf(...kept), present)
      for (const image of kept) fs.unlinkSync(image)
      t.strictSame(fs.readdirSync(world.root).sort(), ['checkpoints', 'disk0.img', 'disk1.img'])
      if (isOver) break
    }
  }
  t.strictSame([...unchanged], calls)
})

on(
  ['xfs'],
  'rollback: a cancel before the first rename changes nothing, a later one has no effect',
  async (t, at) => {
    const world = new World(at.directory)
    const { record, owner } = await world.capture()
    world.write('second')
    for (const [call, isCancelled] of [
      ['cloneFile', true],
      ['renameAt', false],
    ] as const) {
      const controller = new AbortController()
      const end = intercept(t, call, () => {
        controller.abort()
        return undefined
      })
      const rollback = world.provider.rollback(record, { id: randomUUID(), signal: controller.signal }, owner)
      if (isCancelled) await t.rejects(rollback, { code: 'ABORT_ERR' })
      else t.equal((await rollback).length, 2)
      end()
      t.equal(world.content, isCancelled ? present : rolledBack)
    }
  },
)

on(['xfs'], 'rollback rejects if an image does not exist', async (t, at) => {
  const world = new World(at.directory)
  const captured = await world.capture()
  world.write('second')
  fs.unlinkSync(world.images[1])
  t.match(await rejection(world.rollback(captured)), { path: world.images[1], message: /does not exist/ })
  t.equal(contentOf(world.images[0]), 'second of 0;')
  t.strictSame(fs.readdirSync(world.root).sort(), ['checkpoints', 'disk0.img'])
})

function cloneAs(
  world: World,
  { record, owner }: Captured,
  as: string,
): Promise<ReadonlyMap<string, string>> {
  return world.provider.clone(record, { as, signal: never }, owner)
}

on(
  ['xfs', 'btrfs', 'tmpfs'],
  'clone makes writable files of the snapshot beside the images',
  async (t, at) => {
    const world = new World(at.directory)
    const captured = await world.capture(at.options)
    const { record, owner } = captured
    world.write('second')
    const planned = await world.provider.clonePaths(record, { as: 'vm2' }, owner)
    t.strictSame(
      fs.readdirSync(world.root).sort(),
      ['checkpoints', 'disk0.img', 'disk1.img'],
      'nothing is made',
    )
    const clones = await cloneAs(world, captured, 'vm2')
    t.strictSame(
      [...clones],
      world.images.map((image) => [image, `${image}.vm2`]),
    )
    t.strictSame([...planned], [...clones])
    t.equal(contentOf(...clones.values()), rolledBack)
    fs.writeFileSync(clones.get(world.images[0])!, 'changed;')
    t.equal(contentOf(...snapshotsOf(captured)), rolledBack)
    t.equal(world.content, present)
    await world.provider.removeClones(record, { as: 'vm2' }, owner)
    await world.provider.removeClones(record, { as: 'vm2' }, owner)
    t.strictSame(fs.readdirSync(world.root).sort(), ['checkpoints', 'disk0.img', 'disk1.img'])
  },
)

on(['xfs'], 'clone rejects if a file exists, and removes only what this call has made', async (t, at) => {
  const world = new World(at.directory)
  const captured = await world.capture()
  const { record, owner } = captured
  fs.writeFileSync(`${world.images[1]}.vm2`, 'of another;')
  const error = await rejection(cloneAs(world, captured, 'vm2'))
  t.match(error, {
    code: 'ERR_RESTORE_FAILED',
    path: `${world.images[1]}.vm2`,
    message: /exists, so no disk/,
  })
  t.notOk(fs.existsSync(`${world.images[0]}.vm2`))
  await world.provider.removeClones(record, { as: 'vm2' }, owner)
  t.equal(contentOf(`${world.images[1]}.vm2`), 'of another;')
  await cloneAs(world, captured, 'vm3')
  t.match(await rejection(cloneAs(world, captured, 'vm3')), { code: 'ERR_RESTORE_FAILED' })
  fs.renameSync(`${world.images[1]}.vm2`, `${world.images[1]}.vm3`)
  await world.provider.removeClones(record, { as: 'vm3' }, owner)
  t.notOk(fs.existsSync(`${world.images[0]}.vm3`))
  t.equal(contentOf(`${world.images[1]}.vm3`), 'of another;')
})

on(['xfs'], 'clone removes what it made if it is cancelled or fails', async (t, at) => {
  const world = new World(at.directory)
  const { record, owner } = await world.capture()
  for (const [call, result] of [
    ['cloneFile', undefined],
    ['sync', failure('EIO', 'fsync')],
  ] as const) {
    const controller = new AbortController()
    let calls = 0
    const end = intercept(t, call, () => {
      if (++calls < 2) return undefined
      if (result === undefined) controller.abort()
      return result
    })
    const { signal } = controller
    await t.rejects(world.provider.clone(record, { as: 'vm2', signal }, owner), {
      code: result === undefined ? 'ABORT_ERR' : 'ERR_SYSTEM',
    })
    end()
    t.strictSame(fs.readdirSync(world.root).sort(), ['checkpoints', 'disk0.img', 'disk1.img'])
  }
})

on(
  ['xfs'],
  'a snapshot that cannot be cloned back is not copied unless copies are allowed',
  async (t, at) => {
    const world = new World(at.directory)
    const captured = await world.capture()
    intercept(t, 'cloneFile', () => failure('EXDEV', 'ioctl'))
    t.match(await rejection(world.rollback(captured)), {
      code: 'ERR_RESTORE_FAILED',
      message: /cannot be cloned to .*: they are on different file systems\. Copy the file yourself/,
    })
    t.strictSame(fs.readdirSync(world.root).sort(), ['checkpoints', 'disk0.img', 'disk1.img'])
  },
)
