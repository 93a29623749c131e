/** A listing reads the files of many checkpoints at once. It must report what reading them one by one reports. */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { loadNative } from '../../dist/base/native.js'
import { listedCheckpoint, listedCheckpoints } from '../../dist/checkpoint/read.js'
import { checkpointGroup } from '../../dist/checkpoint/structure.js'
import { Directory } from '../../dist/fs/directory.js'
import { readGroup } from '../../dist/fs/file_groups.js'
import { failure, intercept, readOneByOne, scratch } from '../support/index.js'
import { putSet, type SetOptions } from '../support/sets.js'

const endings = ['', '.kern', '.meta', '.manifest']
const id = '01234567-89ab-cdef-0123-456789abcdef'

/** What may be found instead of a file. */
const changes: Record<string, (file: string) => void> = {
  absent: (file) => fs.rmSync(file),
  empty: (file) => fs.truncateSync(file, 0),
  cut: (file) => fs.truncateSync(file, 7),
  longer: (file) => fs.appendFileSync(file, Buffer.alloc(40_000, ' ')),
  garbage: (file) => fs.writeFileSync(file, Buffer.from([0xff, 0, 1])),
  foreign: (file) => fs.writeFileSync(file, 'BHYVE-CHECKPOINT-MANIFEST-1\n'),
  older: (file) => fs.utimesSync(file, 1, 1),
  unreadable: (file) => fs.chmodSync(file, 0),
  directory: (file) => {
    fs.rmSync(file)
    fs.mkdirSync(file)
  },
  fifo: (file) => {
    fs.rmSync(file)
    execFileSync('mkfifo', [file])
  },
  'second name': (file) => fs.linkSync(file, `${file}.second`),
  'symbolic link': (file) => {
    fs.renameSync(file, `${file}.target`)
    fs.symlinkSync(`${file}.target`, file)
  },
}

const sets: Record<string, SetOptions> = {
  'without a manifest': { manifest: false },
  'older shape': { old: true },
  'with an id': { manifest: { id } },
  'long head': { manifest: { more: 'x'.repeat(20_000), id } },
  'huge head': { manifest: { more: 'x'.repeat(2 ** 20), id } },
  'newer release': { manifest: { version: 99, digests: 'unknown', id } },
  unproven: { manifest: { durability: 'unproven', id } },
  'another VM': { vm: 'vm2', manifest: { id } },
}

function storeIn(t: Test): { where: string; directory: Directory } {
  const where = path.join(scratch(t), 'vm1')
  fs.mkdirSync(where)
  const directory = Directory.openPath(where)
  t.teardown(() => directory[Symbol.dispose]())
  return { where, directory }
}

function names(listed: readonly { name: string }[]): string[] {
  return listed.map(({ name }) => name).sort()
}

t.test('a listing equals the checkpoints one by one', async (t) => {
  const { where, directory } = storeIn(t)
  for (const [name, options] of Object.entries(sets)) putSet(where, name, options)
  for (const [change, make] of Object.entries(changes)) {
    for (const ending of endings) {
      const name = `${change}${ending}`
      putSet(where, name, { manifest: { id } })
      make(path.join(where, `${name}.ckp${ending}`))
    }
  }
  const listed = listedCheckpoints(directory, 'vm1')
  t.equal(listed.length, Object.keys(sets).length + Object.keys(changes).length * endings.length - 2)
  t.notOk(names(listed).includes('absent') || names(listed).includes('directory'))
  for (const checkpoint of listed)
    t.strictSame([checkpoint], listedCheckpoint(directory, 'vm1', checkpoint.name), checkpoint.name)
})

t.test('a checkpoint that was replaced while its files were read is read again', async (t) => {
  const { where, directory } = storeIn(t)
  for (const name of ['a', 'b']) putSet(where, name, { manifest: { id } })
  const original = loadNative().readGroups.bind(loadNative())
  let calls = 0
  intercept(t, 'readGroups', (...args) => {
    const count = original(...(args as Parameters<typeof original>))
    const [, bases] = args as Parameters<typeof original>
    if (++calls > 1) return count
    // As if the RAM file of `a` had another time after the other files were read.
    const record = bases.indexOf('a.ckp') * 5 * 9
    const values = new Float64Array((args[4] as Uint8Array).buffer)
    values[record + 4 * 9 + 3]! += 1
    putSet(where, 'a', { manifest: { id, poweredOff: true } })
    // Both sets may be of the same millisecond.
    fs.utimesSync(path.join(where, 'a.ckp'), 1, 1)
    return count
  })
  const listed = listedCheckpoints(directory, 'vm1')
  t.equal(calls, 2)
  t.match(
    listed.find(({ name }) => name === 'a'),
    { state: 'complete', poweredOff: true },
  )
  t.match(
    listed.find(({ name }) => name === 'b'),
    { state: 'complete', poweredOff: false },
  )
})

t.test('a listing opens a RAM file only if its size is not that of the metadata', async (t) => {
  const { where, directory } = storeIn(t)
  for (const name of ['a', 'b']) putSet(where, name, { manifest: { id } })
  fs.appendFileSync(path.join(where, 'b.ckp'), 'more')
  const opened: unknown[] = []
  const limits: unknown[] = []
  intercept(t, 'readStartAt', (_, name) => void opened.push(name))
  intercept(t, 'readGroups', (_directory, _names, _suffixes, maxBytes) => void limits.push(maxBytes))
  const listed = listedCheckpoints(directory, 'vm1')
  t.match(listed, [{ state: 'complete' }, { state: 'damaged' }])
  t.match(limits, [[0]])
  const openedMemory = () => opened.filter((name) => String(name).endsWith('.ckp'))
  t.strictSame(openedMemory(), ['b.ckp'])
  const memory = path.join(where, 'b.ckp')
  fs.writeFileSync(memory, 'the first bytes of the RAM of a guest')
  const [damaged] = listedCheckpoint(directory, 'vm1', 'b')
  t.match(damaged, { state: 'damaged', problems: [{ code: 'memory-size-mismatch' }] })
  t.match(limits, [[0], [26]], 'pruning relies on this')
  const group = readGroup(directory, 'b.ckp', checkpointGroup)!
  t.equal(group.readStart('b.ckp', 26).toString(), 'the first bytes of the RAM')
  t.strictSame(openedMemory(), ['b.ckp'], 'with the other files')
})

t.test('a listing fails if no descriptor is left', async (t) => {
  const { where, directory } = storeIn(t)
  putSet(where, 'a')
  readOneByOne(t)
  intercept(t, 'readStartAt', () => failure('EMFILE', 'openat'))
  t.throws(() => listedCheckpoints(directory, 'vm1'), { code: 'ERR_SYSTEM' })
})
