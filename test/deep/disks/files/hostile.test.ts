/** A hostile or damaged manifest, and links below the checkpoint directory, reach no other file. */
import { randomUUID } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { fileDisks } from 'bhyve-checkpoint'
import type { DiskOwner, DiskRecord } from '../../../../dist/base/disk_types.js'
import { FileProvider } from '../../../../dist/disks/files/provider.js'
import { contents, inlinePool, rejection } from '../../../support/index.js'
import { type Captured, MiB, mounted, never, snapshotsOf, World } from '../../../support/image_world.js'

const { skip, directory } = mounted(t, 'xfs', 512 * MiB)

/** Everything that a provider does with a record. */
function calls(world: World, record: DiskRecord, owner: DiskOwner): Record<string, () => Promise<unknown>> {
  const { provider } = world
  return {
    missing: () => provider.missing(record, owner),
    storedBytes: () => provider.storedBytes(record, owner),
    rollback: () => provider.rollback(record, { id: randomUUID(), signal: never }, owner),
    clonePaths: () => provider.clonePaths(record, { as: 'vm2' }, owner),
    clone: () => provider.clone(record, { as: 'vm2', signal: never }, owner),
    removeClones: () => provider.removeClones(record, { as: 'vm2' }, owner),
    remove: () => provider.remove(record, owner),
  }
}

/** A VM with a checkpoint, and a file of somebody else. */
async function victim(): Promise<{ world: World; captured: Captured; other: string }> {
  const world = new World(directory)
  const captured = await world.capture()
  const other = path.join(world.root, 'other')
  fs.mkdirSync(other)
  for (const name of ['0', '1']) fs.writeFileSync(path.join(other, name), 'precious')
  return { world, captured, other }
}

function record(files: unknown, paths: string[] = []): DiskRecord {
  return { kind: 'file', disks: paths.map((one) => ({ path: one, snapshot: '/etc/passwd' })), files }
}

t.test('an id that is not a UUID is refused', { skip }, async (t) => {
  const { world, captured } = await victim()
  const before = contents(world.root)
  for (const id of [
    '../x',
    '..',
    '.',
    '',
    'x',
    `${captured.owner.id}/`,
    '../../other',
    captured.owner.id.toUpperCase(),
  ]) {
    const owner = { ...captured.owner, id }
    for (const [name, call] of Object.entries(calls(world, captured.record, owner))) {
      if (name === 'clonePaths' || name === 'removeClones') continue // they use no snapshot
      t.match(await rejection(call()), { code: 'ERR_CHECKPOINT_DAMAGED' }, `${name} of ${id}`)
    }
    t.match(await rejection(world.prepare(owner)), { code: 'ERR_CHECKPOINT_DAMAGED' })
    t.match(
      await rejection(world.rollback(captured, id)),
      { code: 'ERR_CHECKPOINT_DAMAGED' },
      'of the rollback',
    )
  }
  for (const as of ['../vm2', '', '.', 'a/b', 'a\0b'])
    for (const call of ['clone', 'clonePaths'] as const) {
      const { record: good, owner } = captured
      const error = await rejection(world.provider[call](good, { as, signal: never }, owner))
      t.match(error, { code: 'ERR_INVALID_VM_NAME' })
    }
  t.strictSame(contents(world.root), before)
})

t.test('a record is never used to find or remove a snapshot', { skip }, async (t) => {
  const { world, captured, other } = await victim()
  const owner = world.owner()
  const before = contents(world.root)
  const [image] = world.images
  const lies = [
    captured.record,
    record([{ path: image, name: '0', bytes: 8 }], [image]),
    { ...record([{ path: path.join(other, '0'), name: '1', bytes: 8 }], [path.join(other, '0')]) },
  ]
  for (const lie of lies) {
    t.ok(((await world.provider.missing(lie, owner)) as string[]).every((one) => one.includes(owner.id)))
    t.equal(await world.provider.storedBytes(lie, owner), 0)
    t.match(await rejection(world.rollback({ record: lie, owner })), { code: 'ERR_CHECKPOINT_DAMAGED' })
    await world.provider.removeClones(lie, { as: 'vm2' }, owner)
    await world.provider.remove(lie, owner)
    t.strictSame(contents(world.root), before)
  }
})

t.test('a malformed record is refused, and counts as missing', { skip }, async (t) => {
  const { world, captured } = await victim()
  const { owner } = captured
  const before = contents(world.root)
  const [image] = world.images
  const good = { path: image, name: '0', bytes: 256 * 1024 }
  const files = [
    undefined,
    'text',
    [],
    [null],
    [{ ...good, name: '../0' }],
    [{ ...good, name: '' }],
    [{ ...good, name: 0 }],
    [{ ...good, bytes: -1 }],
    [{ ...good, bytes: '1' }],
    [{ ...good, copied: 'yes' }],
    [{ ...good, path: 'relative' }],
    [{ ...good, path: '/a\0b' }],
    [{ ...good, path: '/a/..' }],
    [{ ...good, path: '/' }],
    [good, good],
    [{ ...good, path: world.images[1] }],
    Array.from({ length: 5000 }, () => good),
  ]
  for (const list of files) {
    const lie = record(list, [image])
    t.strictSame(await world.provider.missing(lie, owner), ['/etc/passwd'])
    t.equal(await world.provider.storedBytes(lie, owner), 0)
    for (const name of ['rollback', 'clone', 'clonePaths', 'removeClones'])
      t.match(await rejection(calls(world, lie, owner)[name]!()), { code: 'ERR_CHECKPOINT_DAMAGED' }, name)
  }
  t.strictSame(contents(world.root), before)
})

/** Captures with a provider that knows nothing of the snapshots, so that it uses the same names. */
async function takeAgain(world: World, owner: DiskOwner): Promise<unknown> {
  const selection = fileDisks({ files: world.images })
  const provider = new FileProvider(inlinePool())
  const prepared = await provider.prepare({ ...owner, selection, signal: never, inherit: -1 })
  return prepared.take(never)
}

function assertUnreached(t: Test, other: string): void {
  t.strictSame(
    Object.values(contents(other)),
    Array.from({ length: 2 }, () => btoa('precious')),
  )
}

t.test('links below the checkpoint directory are not followed', { skip }, async (t) => {
  for (const linked of ['.disks', '.disks/<id>', '.disks/<id>/0']) {
    const { world, captured, other } = await victim()
    const { owner } = captured
    const where = path.join(world.directory, linked.replace('<id>', owner.id))
    fs.rmSync(where, { recursive: true })
    fs.mkdirSync(path.join(other, owner.id))
    fs.symlinkSync(linked.endsWith('0') ? path.join(other, '0') : other, where)
    const missing = await world.provider.missing(captured.record, owner)
    t.strictSame(missing, snapshotsOf(captured).slice(0, linked.endsWith('0') ? 1 : 2), linked)
    t.equal(await world.provider.storedBytes(captured.record, owner), 0)
    t.match(await rejection(world.rollback(captured)), { code: 'ERR_CHECKPOINT_DAMAGED' })
    t.match(await rejection(calls(world, captured.record, owner).clone!()), {
      code: 'ERR_CHECKPOINT_DAMAGED',
    })
    if (linked === '.disks') t.match(await rejection(world.prepare(world.owner())), { code: 'ERR_SYSTEM' })
    else t.match(await rejection(takeAgain(world, owner)), { code: 'ERR_SYSTEM' })
    await world.provider.remove(captured.record, owner)
    assertUnreached(t, other)
    t.ok(fs.existsSync(path.join(other, owner.id)))
    t.equal(
      fs.existsSync(where),
      linked === '.disks',
      'a link that is not ours stays; one in its directory goes',
    )
  }
})

t.test(
  'a link or directory at a name that a rollback needs is not followed or removed',
  { skip },
  async (t) => {
    for (const plant of ['link', 'directory'] as const) {
      const { world, captured, other } = await victim()
      const id = randomUUID()
      const fresh = `${world.images[1]}.${id}.new`
      if (plant === 'link') fs.symlinkSync(path.join(other, '0'), fresh)
      else fs.mkdirSync(fresh)
      world.write('second')
      t.match(await rejection(world.rollback(captured, id)), { code: 'ERR_SYSTEM', path: fresh })
      t.equal(world.content, 'second of 0; second of 1;')
      t.ok(fs.lstatSync(fresh))
      assertUnreached(t, other)
      t.notOk(fs.existsSync(`${world.images[0]}.${id}.new`), 'the file of the other image is removed')
    }
  },
)

t.test('removing clones does not follow a link that replaced a clone', { skip }, async (t) => {
  const { world, captured, other } = await victim()
  const { record: good, owner } = captured
  await world.provider.clone(good, { as: 'vm2', signal: never }, owner)
  const [clone] = [`${world.images[0]}.vm2`]
  fs.renameSync(clone, path.join(other, 'moved'))
  fs.symlinkSync(path.join(other, 'moved'), clone)
  await world.provider.removeClones(good, { as: 'vm2' }, owner)
  t.ok(fs.existsSync(path.join(other, 'moved')))
  t.notOk(fs.existsSync(`${world.images[1]}.vm2`))
})
