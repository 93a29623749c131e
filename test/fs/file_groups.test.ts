/** Groups of files are what single calls for the same files return, and hide no change of them. */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { Directory } from '../../dist/fs/directory.js'
import { readGroups } from '../../dist/fs/file_groups.js'
import { scratch } from '../support/index.js'

const files = [
  ['', 4],
  ['.x', 64],
] as const

function directoryIn(t: Test): { at: (name: string) => string; directory: Directory } {
  const where = scratch(t)
  const directory = Directory.openPath(where)
  t.teardown(() => directory[Symbol.dispose]())
  return { at: (name) => path.join(where, name), directory }
}

t.test('a group has the statuses and the first bytes of its files', async (t) => {
  const { at, directory } = directoryIn(t)
  fs.writeFileSync(at('a'), 'content', { mode: 0o640 })
  fs.writeFileSync(at('a.x'), 'more')
  fs.utimesSync(at('a'), 1, 1234.5678)
  for (const group of readGroups(directory, ['a', 'none'], files)) {
    t.equal(group.isUsual, true)
    for (const suffix of ['', '.x', '.y']) {
      const name = group.name + suffix
      t.strictSame(group.statusIfAny(name), directory.statusIfAny(name), name)
    }
    t.strictSame(group.statusAfterwards(), directory.statusIfAny(group.name))
    if (group.name === 'none') continue
    t.equal(group.readStart('a', 2).toString(), 'co')
    t.equal(group.readStart('a.x', 64).toString(), 'more')
    t.equal(group.readStart('a', 64).toString(), 'content', 'more than the group has')
  }
})

t.test('what is not a readable regular file with one link is unusual', async (t) => {
  const { at, directory } = directoryIn(t)
  const make: Record<string, (file: string) => void> = {
    directory: (file) => fs.mkdirSync(file),
    link: (file) => fs.symlinkSync(at('target'), file),
    fifo: (file) => execFileSync('mkfifo', [file]),
    'second name': (file) => fs.linkSync(at('target'), file),
  }
  fs.writeFileSync(at('target'), 'content')
  for (const [name, makeIt] of Object.entries(make)) makeIt(at(`${name}.x`))
  const groups = [...readGroups(directory, Object.keys(make), files)]
  t.strictSame(
    groups.map(({ name, isUsual }) => [name, isUsual]),
    Object.keys(make).map((name) => [name, false]),
  )
})

t.test('names with a slash, a NUL or characters of other scripts', async (t) => {
  const { at, directory } = directoryIn(t)
  fs.mkdirSync(at('sub'))
  fs.writeFileSync(at('sub/a'), 'content')
  fs.writeFileSync(at('名前'), 'content')
  const usual = [...readGroups(directory, ['sub/a', 'sub\0', '', '名前'], files)].map(
    (group) => group.isUsual,
  )
  t.strictSame(usual, [false, false, false, true])
})

t.test('many names, with files that fill the buffer', async (t) => {
  const { at, directory } = directoryIn(t)
  const names = Array.from({ length: 150 }, (_, index) => `file ${String(index)}`)
  for (const name of names) fs.writeFileSync(at(name), name.padEnd(20_000, '.'))
  const read: string[] = []
  for (const group of readGroups(directory, names, [['', 16_384]]))
    read.push(group.readStart(group.name, 16_384).toString())
  t.strictSame(
    read,
    names.map((name) => name.padEnd(16_384, '.')),
  )
})

t.test('the status afterwards is a new one if more was read than the group has', async (t) => {
  const { at, directory } = directoryIn(t)
  fs.writeFileSync(at('a'), 'content')
  const [group] = readGroups(directory, ['a'], files)
  const before = group?.statusIfAny('a')
  fs.writeFileSync(at('a'), 'other content')
  t.strictSame(group?.statusAfterwards(), before, 'the status of the time of the read')
  group?.readStart('a', 13)
  t.equal(group?.statusAfterwards()?.size, 13)
})
