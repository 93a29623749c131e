// RAM of more than one slice is nearly all zeros. Skips them, so that the harness stays fast.
import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import fs from 'node:fs'

const pageBytes = 4096
const zeros = Buffer.alloc(pageBytes)
const fewBytes = 1024 * 1024

/** Identifies a content. */
export function digestOf(data) {
  const hash = createHash('sha256').update(`${data.length};`)
  for (const { at, bytes } of dataIn(data)) hash.update(`${at};`).update(bytes)
  return hash.digest('hex')
}

/** Writes a new file. Zeros of a large one become holes. */
export function writeData(descriptor, data) {
  for (const { at, bytes } of dataIn(data)) fs.writeSync(descriptor, bytes, 0, bytes.length, at)
  fs.ftruncateSync(descriptor, data.length)
}

function* dataIn(data) {
  if (data.length <= fewBytes) yield { at: 0, bytes: data }
  for (let at = 0; data.length > fewBytes && at < data.length; at += pageBytes) {
    const bytes = data.subarray(at, at + pageBytes)
    if (!bytes.equals(zeros)) yield { at, bytes }
  }
}
