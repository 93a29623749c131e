/** A rollback of image files goes on from every state of the three names, and never takes another file for its own. */
import { randomUUID } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { rejection } from '../../../support/index.js'
import { type Captured, contentOf, MiB, mounted, snapshotsOf, World } from '../../../support/image_world.js'

const { skip, directory } = mounted(t, 'xfs', 512 * MiB)
const rolledBack = 'first of 0; first of 1;'
const present = 'second of 0; second of 1;'

interface State {
  world: World
  captured: Captured
  id: string
  image: string
  kept: string
  fresh: string
}

/** A captured VM that has run on, and the names of its first image. `made`: the new file exists, as before the first rename. */
async function state({ made = true } = {}): Promise<State> {
  const world = new World(directory)
  const captured = await world.capture()
  world.write('second')
  const id = randomUUID()
  const [image] = world.images
  const [kept, fresh] = [`${image}.${id}`, `${image}.${id}.new`]
  if (made) fs.copyFileSync(snapshotsOf(captured)[0]!, fresh)
  return { world, captured, id, image, kept, fresh }
}

async function assertFinished(t: Test, { world, captured, id }: State): Promise<void> {
  const kept = world.images.map((image) => `${image}.${id}`)
  t.strictSame(await world.rollback(captured, id), kept)
  t.equal(world.content, rolledBack)
  t.equal(contentOf(...kept), present)
  t.strictSame(
    fs.readdirSync(world.root).sort(),
    ['checkpoints', ...world.images, ...kept].map((one) => path.basename(one)).sort(),
  )
}

void t.test('the first rename has left both names, as on UFS', { skip }, async (t) => {
  for (const made of [true, false]) {
    const at = await state({ made })
    fs.linkSync(at.image, at.kept)
    await assertFinished(t, at)
    await assertFinished(t, at)
  }
})

void t.test('the second rename has left both names', { skip }, async (t) => {
  const at = await state()
  fs.renameSync(at.image, at.kept)
  fs.linkSync(at.fresh, at.image)
  await assertFinished(t, at)
})

void t.test('only the first rename was done, and the new file may be lost', { skip }, async (t) => {
  for (const made of [true, false]) {
    const at = await state({ made })
    fs.renameSync(at.image, at.kept)
    await assertFinished(t, at)
  }
})

void t.test(
  'a file that a supervisor made at the missing path is refused, each time',
  { skip },
  async (t) => {
    const at = await state()
    const { world, captured, id, image, kept, fresh } = at
    fs.renameSync(image, kept)
    fs.writeFileSync(image, 'empty;')
    for (let count = 0; count < 2; count++) {
      const error = await rejection(world.rollback(captured, id))
      t.match(error, { code: 'ERR_SYSTEM', path: image, unchanged: undefined })
      for (const name of [image, kept, fresh]) t.match(error.message, `'${name}'`)
      t.equal(contentOf(image, kept, fresh), 'empty; second of 0; first of 0;')
      t.equal(contentOf(world.images[1]), 'second of 1;')
    }
    fs.unlinkSync(image)
    await assertFinished(t, at)
  },
)

void t.test('an error leaves the new file of an image that was renamed', { skip }, async (t) => {
  const at = await state()
  const { world, captured, id, image, kept, fresh } = at
  fs.renameSync(image, kept)
  fs.renameSync(world.images[1], `${world.images[1]}.away`)
  const error = await rejection(world.rollback(captured, id))
  t.match(error, { path: world.images[1], unchanged: undefined })
  t.equal(contentOf(kept, fresh), 'second of 0; first of 0;')
  fs.renameSync(`${world.images[1]}.away`, world.images[1])
  await assertFinished(t, at)
})

void t.test('a rollback that changed nothing reports it', { skip }, async (t) => {
  const { world, captured, id, image } = await state({ made: false })
  const unchanged = async (error: Promise<Error>, message: RegExp): Promise<void> => {
    t.match(await error, { unchanged: true, message })
    const names = ['checkpoints', 'disk0.img', 'disk1.img']
    t.same(
      fs.readdirSync(world.root).filter((name) => !names.includes(name) && name.length < 200),
      [],
    )
  }
  const { owner, record } = captured
  const malformed = { owner, record: { ...record, files: 'x' } }
  await unchanged(rejection(world.rollback(malformed, id)), /invalid list of image files/)
  await unchanged(rejection(world.rollback(captured, 'x')), /is not a UUID/)
  const long = path.join(world.root, `${'x'.repeat(220)}.img`)
  fs.copyFileSync(image, long)
  const named = await world.capture({ files: [image, long] })
  await unchanged(rejection(world.rollback(named, id)), /is too long to be put back/)
  fs.unlinkSync(world.images[1])
  await unchanged(rejection(world.rollback(captured, id)), /disk1\.img' does not exist/)
})

void t.test('a snapshot with a second link is not accepted', { skip }, async (t) => {
  const { world, captured } = await state({ made: false })
  const [first = '', second = ''] = snapshotsOf(captured)
  const other = path.join(world.root, 'of-somebody-else')
  fs.renameSync(first, other)
  fs.linkSync(other, first)
  t.strictSame(await world.provider.missing(captured.record, captured.owner), [first])
  const damaged = { code: 'ERR_CHECKPOINT_DAMAGED', path: first, unchanged: true }
  t.match(await rejection(world.rollback(captured)), damaged)
  t.equal(world.content, present)
  fs.unlinkSync(other)
  t.strictSame(await world.provider.missing(captured.record, captured.owner), [])
  t.equal(contentOf(first, second), rolledBack)
})
