/** A file held by its descriptor: partial writes and interrupted reads are completed. */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { OpenFile } from '../../dist/fs/open_file.js'
import { scratch } from '../support/index.js'

t.test('writeAt: continues after a partial write', (t) => {
  const file = path.join(scratch(t), 'file')
  const descriptor = fs.openSync(file, 'w')
  t.teardown(() => fs.closeSync(descriptor))
  const opened = OpenFile.borrow(descriptor, file)
  const { writeSync } = fs
  t.teardown(() => Object.assign(fs, { writeSync }))
  const inParts = (fd: number, bytes: Buffer, offset: number, length: number, position: number): number =>
    writeSync(fd, bytes, offset, Math.min(length, 3), position)
  Object.assign(fs, { writeSync: inParts })
  opened.writeAt(Buffer.from('abcdefgh'), 2)
  t.equal(fs.readFileSync(file, 'latin1'), '\0\0abcdefgh')
  t.end()
})

t.test('readAt: repeats an interrupted read', (t) => {
  const file = path.join(scratch(t), 'file')
  fs.writeFileSync(file, 'abcdefgh')
  const descriptor = fs.openSync(file, 'r')
  t.teardown(() => fs.closeSync(descriptor))
  const opened = OpenFile.borrow(descriptor, file)
  const { readSync } = fs
  t.teardown(() => Object.assign(fs, { readSync }))
  let reads = 0
  const interrupted = (...args: Parameters<typeof readSync>): number => {
    reads += 1
    if (reads === 1)
      throw Object.assign(new Error('interrupted'), { code: 'EINTR', errno: -4, syscall: 'read' })
    return readSync(...args)
  }
  Object.assign(fs, { readSync: interrupted })
  const bytes = Buffer.alloc(8)
  t.equal(opened.readAt(bytes, 0), 8)
  t.equal(bytes.toString(), 'abcdefgh')
  t.equal(reads, 2)
  t.end()
})
