/** Snapshots of image files: captured by sharing blocks, complete, durable, counted and removed. */
import { execFileSync, spawnSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { createClient, fileDisks } from 'bhyve-checkpoint'
import { DiskProviders } from '../../../../dist/disks/providers.js'
import { loadNative } from '../../../../dist/base/native.js'
import { sharedPool } from '../../../../dist/pool/pool.js'
import { failure, inlinePool, intercept, rejection, tree } from '../../../support/index.js'
import {
  contentOf,
  type FileSystem,
  MiB,
  mounted,
  never,
  snapshotsOf,
  usedBytes,
  World,
} from '../../../support/image_world.js'

const file = {
  xfs: mounted(t, 'xfs', 3072 * MiB),
  btrfs: mounted(t, 'btrfs', 512 * MiB),
  tmpfs: mounted(t, 'tmpfs', 64 * MiB),
}
const native = loadNative()

/** A test on each of these file systems. */
function on(types: FileSystem[], title: string, body: (t: Test, directory: string) => Promise<void>): void {
  for (const type of types) {
    const { skip, directory } = file[type]
    t.test(`${type}: ${title}`, { skip }, async (t) => {
      const before = native.ownedDescriptors()
      await body(t, directory)
      t.equal(native.ownedDescriptors(), before, 'no descriptor is left open')
    })
  }
}

on(
  ['xfs', 'btrfs'],
  'a snapshot keeps the content of its moment and shares its blocks',
  async (t, directory) => {
    const world = new World(directory, { imageBytes: MiB, pool: sharedPool() })
    const before = usedBytes(directory)
    const captured = await world.capture()
    const { record, owner } = captured
    t.ok(usedBytes(directory) - before < MiB, 'less than one copy')
    const expected = world.images.map((image, index) => ({
      path: image,
      snapshot: path.join(world.directory, '.disks', owner.id, String(index)),
    }))
    t.strictSame(record, {
      kind: 'file',
      disks: expected,
      files: world.images.map((image, index) => ({ path: image, name: String(index), bytes: MiB })),
    })
    world.write('second')
    t.equal(contentOf(...snapshotsOf(captured)), 'first of 0; first of 1;')
    t.equal(world.content, 'second of 0; second of 1;')
    const modes = ['', owner.id, `${owner.id}/0`].map(
      (name) => fs.statSync(path.join(world.directory, '.disks', name)).mode & 0o777,
    )
    t.strictSame(modes, [0o700, 0o700, 0o600])
  },
)

on(['xfs'], 'prepare leaves nothing, whatever happens to the save afterwards', async (t, directory) => {
  const world = new World(directory)
  await world.prepare(world.owner())
  t.strictSame(tree(world.directory), [])
})

on(['xfs', 'btrfs'], 'storedBytes counts what only the snapshot occupies', async (t, directory) => {
  const world = new World(directory, { imageBytes: MiB })
  const { record, owner } = await world.capture()
  t.equal(await world.provider.storedBytes(record, owner), 0, 'all blocks are shared')
  const overwrite = async (bytes: number): Promise<number> => {
    const image = fs.openSync(world.images[0], 'r+')
    fs.writeSync(image, Buffer.alloc(bytes), 0, bytes, 0)
    fs.closeSync(image)
    usedBytes(directory)
    return world.provider.storedBytes(record, owner)
  }
  // btrfs keeps an extent, and thus counts it as shared, until all of it is replaced.
  t.equal(await overwrite(MiB / 4), file.xfs.directory === directory ? MiB / 4 : 0, 'a part is replaced')
  t.equal(await overwrite(MiB), MiB, 'the image is replaced')
  await world.provider.remove(record, owner)
  t.equal(await world.provider.storedBytes(record, owner), 0)
})

on(['xfs'], 'storedBytes counts all extents of a fragmented snapshot', async (t, directory) => {
  const world = new World(directory, { imageBytes: 16 * MiB })
  const { record, owner } = await world.capture()
  const image = fs.openSync(world.images[0], 'r+')
  // Every second block, so that more extents exist than one call of the kernel returns.
  for (let at = 0; at < 1200; at++) fs.writeSync(image, Buffer.alloc(4096, 1), 0, 4096, at * 8192)
  fs.closeSync(image)
  usedBytes(directory)
  t.equal(await world.provider.storedBytes(record, owner), 1200 * 4096)
})

on(['xfs'], 'ten snapshots of a 1 GiB image use less than 2 percent of ten copies', async (t, directory) => {
  const world = new World(directory, { imageBytes: 0 })
  const [image] = world.images
  execFileSync('dd', ['if=/dev/zero', `of=${image}`, 'bs=4M', 'count=256'], { stdio: 'pipe' })
  const before = usedBytes(directory)
  t.ok(before > 1024 * MiB, 'the image has blocks')
  for (let count = 0; count < 10; count++) await world.capture({ files: [image] })
  const used = usedBytes(directory) - before
  t.comment(`${(used / MiB).toFixed(1)} MiB`)
  t.ok(used < (10 * 1024 * MiB) / 50, `${used} bytes`)
  fs.rmSync(world.root, { recursive: true })
})

on(['xfs', 'btrfs'], 'remove takes only the snapshots of this checkpoint', async (t, directory) => {
  const world = new World(directory)
  const one = await world.capture()
  const other = await world.capture()
  await world.provider.remove(one.record, one.owner)
  await world.provider.remove(one.record, one.owner)
  t.strictSame(fs.readdirSync(path.join(world.directory, '.disks')), [other.owner.id])
  t.equal(contentOf(...snapshotsOf(other)), 'first of 0; first of 1;')
  await world.provider.remove(other.record, other.owner)
  t.strictSame(tree(world.directory), [], '.disks is removed when it is empty')
  t.strictSame(tree(world.root), ['checkpoints/', 'checkpoints/vm1/', 'disk0.img', 'disk1.img'])
})

on(
  ['xfs'],
  'remove accepts a planned record whose capture did not begin, or did not end',
  async (t, directory) => {
    const world = new World(directory)
    const owner = world.owner()
    const { planned } = await world.prepare(owner)
    t.match(planned, { files: [{ name: '0', bytes: 256 * 1024 }, { name: '1' }] })
    t.strictSame(tree(world.directory), [], 'prepare leaves nothing')
    await world.provider.remove(planned, owner)
    t.strictSame(tree(world.directory), [])
    const second = await world.prepare(owner)
    fs.unlinkSync(world.images[1])
    t.match(await rejection(second.take(never)), { path: world.images[1] })
    t.ok(tree(world.directory).length > 1)
    await world.provider.remove(second.planned, owner)
    t.strictSame(tree(world.directory), [])
    fs.rmSync(world.directory, { recursive: true })
    await world.provider.remove(planned, owner)
  },
)

on(['xfs'], 'missing names the snapshots that are gone, replaced or truncated', async (t, directory) => {
  const world = new World(directory)
  const captured = await world.capture()
  const [first = '', second = ''] = snapshotsOf(captured)
  const missing = (): Promise<readonly string[]> => world.provider.missing(captured.record, captured.owner)
  t.strictSame(await missing(), [])
  fs.truncateSync(first, 5)
  t.strictSame(await missing(), [first])
  fs.rmSync(second)
  fs.symlinkSync(world.images[1], second)
  t.strictSame(await missing(), [first, second])
  t.match(await rejection(world.rollback(captured)), { code: 'ERR_CHECKPOINT_DAMAGED', path: first })
  t.equal(world.content, 'first of 0; first of 1;')
  t.strictSame(fs.readdirSync(world.root).sort(), ['checkpoints', 'disk0.img', 'disk1.img'])
  fs.rmSync(path.join(world.directory, '.disks'), { recursive: true })
  t.strictSame(await missing(), [first, second])
})

on(
  ['xfs'],
  'the record has the size of the snapshot, and finish makes everything durable',
  async (t, directory) => {
    const world = new World(directory)
    const prepared = await world.prepare(world.owner())
    fs.appendFileSync(world.images[0], 'more')
    const taken = await prepared.take(never)
    const flushed: number[] = []
    intercept(t, 'sync', (descriptor) => void flushed.push(fs.fstatSync(descriptor as number).ino))
    const record = await prepared.finish!(taken)
    t.match(record, { files: [{ bytes: 256 * 1024 + 4 }, { bytes: 256 * 1024 }] })
    const id = path.basename(path.dirname(record.disks[0]!.snapshot))
    const expected = [`.disks/${id}/0`, `.disks/${id}/1`, `.disks/${id}`, '.disks', '']
    t.strictSame(
      flushed,
      expected.map((name) => fs.statSync(path.join(world.directory, name)).ino),
      'files before directories',
    )
  },
)

on(['xfs'], 'several selections of one checkpoint do not get in each other’s way', async (t, directory) => {
  const world = new World(directory)
  const owner = world.owner()
  const prepared = await Promise.all(world.images.map((image) => world.prepare(owner, { files: [image] })))
  const records = await Promise.all(prepared.map(async (one) => one.finish!(await one.take(never))))
  world.write('second')
  for (const record of records) t.strictSame(await world.provider.missing(record, owner), [])
  for (const record of records) await world.rollback({ owner, record })
  t.equal(world.content, 'first of 0; first of 1;')
  const again = world.owner()
  const { planned } = await world.prepare(again)
  const link = path.join(world.root, 'link.img')
  fs.linkSync(world.images[1], link)
  const error = await rejection(world.prepare(again, { files: [link] }))
  t.match(error, { code: 'ERR_INVALID_OPTION', path: link, message: /Two selections of disks contain/ })
  await world.provider.remove(planned, again)
  t.ok(await world.prepare(again, { files: [link] }), 'what was removed does not count')
})

on(['xfs'], 'images are found in bhyve arguments, each once', async (t, directory) => {
  const world = new World(directory)
  const link = path.join(world.root, 'link.img')
  fs.symlinkSync('disk0.img', link)
  const relative = path.relative(process.cwd(), world.images[1])
  const slots = [link, relative].flatMap((image, index) => ['-s', `${index + 3},virtio-blk,${image}`])
  const args = ['-c', '1', '-m', '256M', '-s', '0,hostbridge', ...slots, '-s', '31,lpc', 'vm1']
  const owner = world.owner()
  const { planned } = await world.prepare(owner, { files: [world.images[0]], args })
  const files = planned.files as { path: string; name: string }[]
  t.strictSame(
    files.map((one) => [fs.realpathSync(one.path), one.name]),
    [
      [world.images[0], '0'],
      [world.images[0], '0'],
      [world.images[1], '1'],
    ],
  )
  t.strictSame(
    files.slice(0, 2).map((one) => one.path),
    [world.images[0], link],
  )
  for (const bad of [
    ['-s', '3,virtio-blk'],
    ['-c', '1', '-s', '0,hostbridge', 'vm1'],
  ])
    t.match(await rejection(world.prepare(owner, { args: bad })), {
      code: 'ERR_INVALID_OPTION',
      message: /^The bhyve arguments in fileDisks cannot be used: /,
    })
})

on(['xfs'], 'prepare rejects what is not a regular file, and does not open it', async (t, directory) => {
  const world = new World(directory)
  const fifo = path.join(world.root, 'fifo')
  execFileSync('mkfifo', [fifo])
  for (const other of ['/dev/null', fifo, world.root]) {
    const error = await rejection(world.prepare(world.owner(), { files: [other] }))
    t.match(error, { code: 'ERR_INVALID_OPTION', path: other, message: /not a regular file.*Use zfsDisks/ })
  }
  const absent = path.join(world.root, 'absent.img')
  t.match(await rejection(world.prepare(world.owner(), { files: [absent] })), {
    message: `The image file '${absent}' does not exist. Check its path, and mount its file system`,
  })
  const { images, provider } = world
  for (const selection of [
    { kind: 'file' },
    { kind: 'file', files: ['x'] },
    { kind: 'file', files: images, a: 1 },
  ])
    t.match(await rejection(provider.prepare({ ...world.owner(), selection, signal: never, inherit: -1 })), {
      code: 'ERR_INVALID_OPTION',
    })
  t.strictSame(tree(world.directory), [])
})

on(['tmpfs'], 'prepare rejects where blocks cannot be cloned, and leaves nothing', async (t, directory) => {
  const world = new World(directory)
  const error = await rejection(world.prepare(world.owner()))
  t.match(error, { code: 'ERR_DISKS_NOT_CAPTURED', path: world.images[0] })
  for (const part of [world.directory, 'cannot clone blocks', 'XFS or btrfs', 'zfsDisks', 'allowCopy: true'])
    t.match(error.message, part)
  t.strictSame(tree(world.directory), [])
})

on(['xfs'], 'prepare rejects an image on another file system than the checkpoints', async (t, directory) => {
  if (file.tmpfs.skip !== false) return
  const world = new World(directory)
  const image = path.join(file.tmpfs.directory, 'far.img')
  fs.writeFileSync(image, 'far;')
  const files = [world.images[0], image]
  const error = await rejection(world.prepare(world.owner(), { files }))
  t.match(error, { path: image, message: /they are on different file systems\. Put the image and/ })
  t.strictSame(tree(world.directory), [])
  const captured = await world.capture({ files, allowCopy: true })
  t.match(captured.record, { files: [{ copied: undefined }, { copied: true }] })
  fs.writeFileSync(image, 'new;')
  const [kept] = (await world.rollback(captured)).slice(1)
  t.equal(contentOf(image, kept!), 'far; new;')
})

on(['btrfs'], 'the message for an image without copy-on-write names the attribute', async (t, directory) => {
  const world = new World(directory)
  const image = path.join(world.root, 'nocow.img')
  fs.writeFileSync(image, '')
  execFileSync('chattr', ['+C', image])
  fs.writeFileSync(image, Buffer.alloc(MiB, 'x'))
  t.match(await rejection(world.prepare(world.owner(), { files: [image] })), {
    message: /attribute C, see chattr/,
  })
  execFileSync('chattr', ['+C', world.directory])
  t.match(await world.capture({ files: [image] }), { record: { files: [{ bytes: MiB }] } })
})

on(['tmpfs'], 'allowCopy copies the data and keeps the holes', async (t, directory) => {
  const world = new World(directory)
  const image = path.join(world.root, 'sparse.img')
  fs.writeFileSync(image, 'start;')
  fs.truncateSync(image, 1024 * MiB)
  const descriptor = fs.openSync(image, 'r+')
  fs.writeSync(descriptor, Buffer.alloc(MiB, 'middle'), 0, MiB, 512 * MiB)
  fs.closeSync(descriptor)
  const captured = await world.capture({ files: [image], allowCopy: true })
  t.match(captured.record, { files: [{ bytes: 1024 * MiB, copied: true }] })
  const [snapshot = ''] = snapshotsOf(captured)
  t.equal(spawnSync('cmp', [image, snapshot]).status, 0)
  t.ok(fs.statSync(snapshot).blocks * 512 < 2 * MiB, 'less than 2 MiB are occupied')
  const stored = await world.provider.storedBytes(captured.record, captured.owner)
  t.equal(stored, fs.statSync(snapshot).blocks * 512)
  fs.rmSync(world.root, { recursive: true })
})

on(['tmpfs'], 'a cancelled copy ends before take rejects', async (t, directory) => {
  const world = new World(directory)
  const prepared = await world.prepare(world.owner(), { allowCopy: true })
  const controller = new AbortController()
  const reason = new Error('enough')
  const end = intercept(t, 'dataRange', () => {
    controller.abort(reason)
    return undefined
  })
  await t.rejects(prepared.take(controller.signal), { code: 'ABORT_ERR', cause: reason })
  end()
  const sizes = tree(world.directory).filter((name) => !name.endsWith('/'))
  t.equal(sizes.length, 1, 'the second image was not begun')
  t.equal(fs.statSync(path.join(world.directory, sizes[0]!)).size, 0, 'nothing was copied after the cancel')
  await t.rejects(prepared.take(controller.signal), { code: 'ABORT_ERR' }, 'not even begun')
  await t.rejects(
    world.provider.prepare({
      ...world.owner(),
      selection: fileDisks({ files: world.images }),
      signal: controller.signal,
      inherit: -1,
    }),
    { code: 'ABORT_ERR' },
  )
})

on(['xfs'], 'a clone that ends after the cancel is not a capture', async (t, directory) => {
  const world = new World(directory)
  const prepared = await world.prepare(world.owner())
  const controller = new AbortController()
  intercept(t, 'cloneFile', () => {
    controller.abort()
    return undefined
  })
  await t.rejects(prepared.take(controller.signal), { code: 'ABORT_ERR' })
})

on(
  ['tmpfs'],
  'allowCopy: a full file system is noticed before the freeze, or during it',
  async (t, directory) => {
    const world = new World(directory, { imageBytes: MiB })
    const filler = path.join(directory, 'filler')
    const fillUp = (free: number): void => {
      const { bavail, bsize } = fs.statfsSync(directory)
      fs.writeFileSync(filler, Buffer.alloc(bavail * bsize - free))
    }
    fillUp(MiB)
    t.match(await rejection(world.prepare(world.owner(), { allowCopy: true })), {
      code: 'ERR_NO_SPACE',
      requiredBytes: 2 * MiB,
      availableBytes: MiB,
      path: world.directory,
    })
    t.strictSame(tree(world.directory), [])
    fs.rmSync(filler)
    const owner = world.owner()
    const prepared = await world.prepare(owner, { allowCopy: true })
    fillUp(MiB)
    t.match(await rejection(prepared.take(never)), { code: 'ERR_NO_SPACE', syscall: 'write' })
    await world.provider.remove(prepared.planned, owner)
    t.strictSame(tree(world.directory), [])
    fs.rmSync(filler)
  },
)

on(
  ['xfs'],
  'prepare rejects with the error of the file system if the probe fails otherwise',
  async (t, directory) => {
    const world = new World(directory)
    for (const [errno, code] of [
      ['ENOSPC', 'ERR_NO_SPACE'],
      ['EIO', 'ERR_SYSTEM'],
      ['EPERM', 'ERR_PERMISSION'],
    ] as const) {
      const end = intercept(t, 'cloneFile', () => failure(errno, 'ioctl'))
      t.match(await rejection(world.prepare(world.owner(), { allowCopy: true })), { code })
      end()
    }
    t.strictSame(tree(world.directory), [])
  },
)

on(['xfs'], 'an image that is replaced after prepare is not captured', async (t, directory) => {
  const world = new World(directory)
  const prepared = await world.prepare(world.owner())
  fs.copyFileSync(world.images[0], `${world.images[0]}.copy`)
  fs.renameSync(`${world.images[0]}.copy`, world.images[0])
  t.match(await rejection(prepared.take(never)), {
    code: 'ERR_DISKS_NOT_CAPTURED',
    message: /was replaced by another file/,
  })
})

on(
  ['xfs'],
  'another process that removes the empty .disks does not make the capture fail',
  async (t, directory) => {
    const world = new World(directory)
    const prepared = await world.prepare(world.owner())
    const disks = path.join(world.directory, '.disks')
    let removals = 0
    intercept(t, 'makeDirectoryAt', (_directory, name) => {
      if (name === '.disks' || ++removals > 3) return undefined
      fs.rmdirSync(disks)
      return undefined
    })
    t.match(await prepared.finish!(await prepared.take(never)), { files: [{ name: '0' }, { name: '1' }] })
    t.equal(removals, 4)
  },
)

on(['xfs'], 'a file that a killed probe left is removed by the next call', async (t, directory) => {
  const world = new World(directory)
  const left = path.join(world.directory, '.disks', `probe-${randomUUID()}`)
  for (const next of ['prepare', 'remove']) {
    fs.mkdirSync(path.dirname(left), { recursive: true })
    fs.writeFileSync(left, '')
    if (next === 'prepare') await world.prepare(world.owner())
    else await world.provider.remove({ kind: 'file', disks: [] }, world.owner())
    t.notOk(fs.existsSync(left), next)
  }
})

t.test('the client knows the provider', async (t) => {
  const providers = new DiskProviders(inlinePool(), [])
  t.match(await providers.of('file'), { kind: 'file' })
  t.strictSame(
    await (
      await providers.of('file')
    )?.shared?.({ kind: 'file', disks: [] }, { vm: '', id: '', directory: '' }),
    [],
  )
  const own = { kind: 'file', prepare: () => undefined, remove: () => undefined, missing: () => undefined }
  t.throws(() => createClient({ diskProviders: [own as never] }), { code: 'ERR_INVALID_OPTION' })
})
