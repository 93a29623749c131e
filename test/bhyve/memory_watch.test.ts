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
  t.equal(await watch.isWriting(), false, 'no file')
  sizes.set('ckp', 4096)
  t.equal(
    await watch.isWriting(),
    false,
    'a file of an earlier request: bhyve has not opened all of its own yet',
  )
  sizes.set('ckp', 0).set('ckp.meta', 0)
  t.equal(await watch.isWriting(), false, 'all files are open and empty')
  sizes.set('ckp', 1)
  t.equal(await watch.isWriting(), true)
})

void t.test('a size that cannot be read at once means that RAM is being written', async (t) => {
  const sizes = new Map<string, number | 'blocked'>([
    ['ckp.meta', 0],
    ['ckp', 'blocked'],
  ])
  const { watch, looked } = watching(sizes)
  t.equal(await watch.isWriting(), true)
  t.equal(await watch.isWriting(), true)
  t.strictSame(looked, ['ckp.meta', 'ckp'], 'a blocked call is not repeated')
})

void t.test('untilWriting ends when there is nothing to wait for any more', async (t) => {
  const { watch } = watching(new Map())
  let polls = 0
  await watch.untilWriting(() => ++polls > 3)
  t.equal(polls, 4)
})
