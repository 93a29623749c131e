// The files that a hostile bhyve puts into its inbox. `secret` is a file that must never be published.
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { writeSet } from '../crash/sets.mjs'

const files = ['ckp', 'ckp.kern', 'ckp.meta']

/** Writes good checkpoint files and replaces one of them. */
const instead = (name, plant) => (inbox, secret) => {
  writeSet(path.join(inbox, 'ckp'), 1)
  const file = path.join(inbox, name)
  fs.rmSync(file)
  plant(file, secret)
}

const each = (what, plant) => files.map((name) => [`${what} for ${name}`, instead(name, plant)])

const setMetadata = (inbox, change) => {
  const file = path.join(inbox, 'ckp.meta')
  const metadata = JSON.parse(fs.readFileSync(file, 'utf8'))
  change(metadata)
  fs.writeFileSync(file, JSON.stringify(metadata))
}

const bytes = (inbox, name) => Buffer.concat([Buffer.from(`${inbox}/`), Buffer.from(name)])

/** The content that must make the checkpoint fail. */
export const plants = Object.fromEntries([
  ...each('a link to a secret', (file, secret) => fs.symlinkSync(secret, file)),
  ...each('a link to endless zeros', (file) => fs.symlinkSync('/dev/zero', file)),
  ...each('a dangling link', (file) => fs.symlinkSync('nowhere', file)),
  ...each('a link to itself', (file) => fs.symlinkSync(path.basename(file), file)),
  ...each('a FIFO', (file) => execFileSync('mkfifo', [path.basename(file)], { cwd: path.dirname(file) })),
  ...each('a directory', (file) => fs.mkdirSync(path.join(file, 'deeper'), { recursive: true })),
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
    'kernel state of terabytes that matches the metadata',
    (inbox) => {
      writeSet(path.join(inbox, 'ckp'), 1)
      setMetadata(inbox, ({ devices }) => (devices.at(-1).size = 8 * 2 ** 40))
      const { size, file_offset: at } = JSON.parse(fs.readFileSync(path.join(inbox, 'ckp.meta'))).devices.at(
        -1,
      )
      fs.truncateSync(path.join(inbox, 'ckp.kern'), at + size)
    },
  ],
  [
    'names with control characters',
    (inbox) => {
      writeSet(path.join(inbox, 'ckp'), 1)
      setMetadata(inbox, ({ devices }) => (devices[0].device = '\u001b[2J\nall is well'))
    },
  ],
  [
    'metadata of a gigabyte',
    (inbox) => {
      writeSet(path.join(inbox, 'ckp'), 1)
      fs.truncateSync(path.join(inbox, 'ckp.meta'), 2 ** 30)
    },
  ],
])

/** Other files in the inbox, beside good checkpoint files or alone. */
export const litter = {
  'a hundred thousand files': (inbox) => {
    for (let index = 0; index < 100_000; index++)
      fs.closeSync(fs.openSync(path.join(inbox, `f${index}`), 'w'))
  },
  'thousands of directories': (inbox) => {
    for (let index = 0; index < 5_000; index++) fs.mkdirSync(path.join(inbox, `d${index}`))
  },
  'a tree too deep for a path': (inbox) => {
    const name = 'd'.repeat(250)
    for (let depth = 0; depth < 100; depth++) {
      // Build the tree from the bottom: move what exists into a new directory.
      fs.mkdirSync(path.join(inbox, 'above'))
      if (depth > 0) fs.renameSync(path.join(inbox, name), path.join(inbox, 'above', name))
      fs.renameSync(path.join(inbox, 'above'), path.join(inbox, name))
    }
  },
  'names that are not valid UTF-8': (inbox) => {
    const odd = [0x6f, 0xff, 0xfe, 0x64]
    fs.mkdirSync(bytes(inbox, odd))
    fs.writeFileSync(bytes(inbox, [...odd, 0x2f, ...odd]), '')
    fs.symlinkSync('nowhere', bytes(inbox, [0xc3, 0x28]))
  },
  'names that the store uses itself': (inbox) => {
    for (const name of ['intent', 'peer', 'size', 'manifest.new', 'x.ckp', 'x.ckp.manifest'])
      fs.writeFileSync(path.join(inbox, name), '{"version":1}')
    for (const name of ['.staging', 'in', 'abc.ready', 'abc.trash'])
      fs.mkdirSync(path.join(inbox, name, 'in'), { recursive: true })
  },
  'directories that nobody can enter': (inbox) => {
    for (const name of ['a', 'b']) {
      fs.mkdirSync(path.join(inbox, name, 'c'), { recursive: true })
      fs.chmodSync(path.join(inbox, name), 0)
    }
  },
  'an inbox that nobody can enter': (inbox) => fs.chmodSync(`${inbox}/.`, 0),
}
