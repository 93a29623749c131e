/** How the guard notices that bhyve writes RAM. */
import t from 'tap'
import { MemoryWatch } from '../../dist/bhyve/freeze/memory_watch.js'

const names = { memory: 'ckp', metadata: 'ckp.meta' }

/** Sizes by name; `blocked` never returns. */
function watching(sizes: Map<string, number | 'blocked'>): { watch: MemoryWatch; looked: string[] } {
  const looked: string[] = []
  const watch = new MemoryWatch((name) => {
    looked.push(name)
    const size = sizes.get(name)
    return size === 'blocked' ? new Promise(() => undefined) : Promise.resolve(size)
  }, names)
  return { watch, looked }
}

void t.test('RAM is being written once its file is not empty and the metadata file exists', async (t) => {
  const sizes = new Map<string, number | 'blocked'>()
  const { watch } = watching(sizes)
  t.equal(await watch.mayBeWriting(), false, 'no file')
  sizes.set('ckp', 4096)
  t.equal(
    await watch.mayBeWriting(),
    false,
    'a file of an earlier request: bhyve has not opened all of its own yet',
  )
  sizes.set('ckp', 0).set('ckp.meta', 0)
  t.equal(await watch.mayBeWriting(), false, 'all files are open and empty')
  sizes.set('ckp', 1)
  t.equal(await watch.mayBeWriting(), true)
})

void t.test('a size that cannot be read at once means that RAM is being written', async (t) => {
  const sizes = new Map<string, number | 'blocked'>([
    ['ckp.meta', 0],
    ['ckp', 'blocked'],
  ])
  const { watch, looked } = watching(sizes)
  t.equal(await watch.mayBeWriting(), true)
  t.equal(await watch.mayBeWriting(), true)
  t.strictSame(looked, ['ckp.meta', 'ckp'], 'a blocked call is not repeated')
})

void t.test('untilMaybeWriting ends when there is nothing to wait for any more', async (t) => {
  const { watch } = watching(new Map())
  let polls = 0
  await watch.untilMaybeWriting(() => ++polls > 3)
  t.equal(polls, 4)
})

void t.test(
  'a stopped bhyve has written RAM only if the file is not empty, however long that takes to read',
  async (t) => {
    let answer: ((size: number) => void) | undefined
    const watch = new MemoryWatch(
      (name) => (name === 'ckp' ? new Promise((resolve) => (answer = resolve)) : Promise.resolve(0)),
      names,
    )
    t.equal(await watch.mayBeWriting(), true, 'the call is slow')
    const first = watch.hasWritten()
    answer?.(0)
    await new Promise((resolve) => setImmediate(resolve))
    answer?.(0)
    t.equal(await first, false, 'slow, but empty')
    t.equal(await watch.mayBeWriting(), true)
    const second = watch.hasWritten()
    answer?.(1)
    t.equal(await second, true)
  },
)
