// What a bhyve that means ill puts into the folder it was given. `secret` is a file that it must not get published.
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { writeSet } from '../crash/sets.mjs'

const files = ['ckp', 'ckp.kern', 'ckp.meta']

/** A good set, one file of which `plant` replaces. */
const instead = (name, plant) => (folder, secret) => {
  writeSet(path.join(folder, 'ckp'), 1)
  const file = path.join(folder, name)
  fs.rmSync(file)
  plant(file, secret)
}

const each = (what, plant) => files.map((name) => [`${what} for ${name}`, instead(name, plant)])

const setMetadata = (folder, change) => {
  const file = path.join(folder, 'ckp.meta')
  const metadata = JSON.parse(fs.readFileSync(file, 'utf8'))
  change(metadata)
  fs.writeFileSync(file, JSON.stringify(metadata))
}

const bytes = (folder, name) => Buffer.concat([Buffer.from(`${folder}/`), Buffer.from(name)])

/** Which end in a refused checkpoint. */
export const plants = Object.fromEntries([
  ...each('a link to a secret', (file, secret) => fs.symlinkSync(secret, file)),
  ...each('a link to endless zeros', (file) => fs.symlinkSync('/dev/zero', file)),
  ...each('a link that dangles', (file) => fs.symlinkSync('nowhere', file)),
  ...each('a link to itself', (file) => fs.symlinkSync(path.basename(file), file)),
  ...each('a FIFO', (file) => execFileSync('mkfifo', [path.basename(file)], { cwd: path.dirname(file) })),
  ...each('a folder', (file) => fs.mkdirSync(path.join(file, 'deeper'), { recursive: true })),
  ...each('a second name', (file) => {
    fs.writeFileSync(file, 'x')
    fs.linkSync(file, `${file}.again`)
  }),
  ...each('a huge sparse file', (file) => {
    fs.writeFileSync(file, '')
    fs.truncateSync(file, 8 * 2 ** 40)
  }),
  ...each('nothing', () => undefined),
  [
    'kernel state of terabytes, as the metadata say',
    (folder) => {
      writeSet(path.join(folder, 'ckp'), 1)
      setMetadata(folder, ({ devices }) => (devices.at(-1).size = 8 * 2 ** 40))
      const { size, file_offset: at } = JSON.parse(fs.readFileSync(path.join(folder, 'ckp.meta'))).devices.at(
        -1,
      )
      fs.truncateSync(path.join(folder, 'ckp.kern'), at + size)
    },
  ],
  [
    'names that would write in a log',
    (folder) => {
      writeSet(path.join(folder, 'ckp'), 1)
      setMetadata(folder, ({ devices }) => (devices[0].device = '\u001b[2J\nall is well'))
    },
  ],
  [
    'metadata of a gigabyte',
    (folder) => {
      writeSet(path.join(folder, 'ckp'), 1)
      fs.truncateSync(path.join(folder, 'ckp.meta'), 2 ** 30)
    },
  ],
])

/** Which stand beside a good set, or alone. */
export const litter = {
  'a hundred thousand files': (folder) => {
    for (let index = 0; index < 100_000; index++)
      fs.closeSync(fs.openSync(path.join(folder, `f${index}`), 'w'))
  },
  'thousands of folders': (folder) => {
    for (let index = 0; index < 5_000; index++) fs.mkdirSync(path.join(folder, `d${index}`))
  },
  'a tree too deep for a path': (folder) => {
    const name = 'd'.repeat(250)
    for (let depth = 0; depth < 100; depth++) {
      // Downwards from the bottom: what was made goes into a new folder above it.
      fs.mkdirSync(path.join(folder, 'above'))
      if (depth > 0) fs.renameSync(path.join(folder, name), path.join(folder, 'above', name))
      fs.renameSync(path.join(folder, 'above'), path.join(folder, name))
    }
  },
  'names that are no UTF-8': (folder) => {
    const odd = [0x6f, 0xff, 0xfe, 0x64]
    fs.mkdirSync(bytes(folder, odd))
    fs.writeFileSync(bytes(folder, [...odd, 0x2f, ...odd]), '')
    fs.symlinkSync('nowhere', bytes(folder, [0xc3, 0x28]))
  },
  'names that mean something to the store': (folder) => {
    for (const name of ['intent', 'peer', 'size', 'manifest.new', 'x.ckp', 'x.ckp.manifest'])
      fs.writeFileSync(path.join(folder, name), '{"version":1}')
    for (const name of ['.staging', 'in', 'abc.ready', 'abc.trash'])
      fs.mkdirSync(path.join(folder, name, 'in'), { recursive: true })
  },
  'folders that nobody may enter': (folder) => {
    for (const name of ['a', 'b']) {
      fs.mkdirSync(path.join(folder, name, 'c'), { recursive: true })
      fs.chmodSync(path.join(folder, name), 0)
    }
  },
  'a folder of its own that nobody may enter': (folder) => fs.chmodSync(`${folder}/.`, 0),
}
