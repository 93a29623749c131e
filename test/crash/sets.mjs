// Checkpoints whose files contain a tag, so that every byte of every file is known.
import { Buffer } from 'node:buffer'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { usualSliceBytes } from '../../dist/checkpoint/slice.js'

const golden = fileURLToPath(new URL('../fixtures/golden/meta/descriptor.meta', import.meta.url))
const metadata = JSON.parse(fs.readFileSync(golden, 'utf8'))
const kernelBytes = 24472
const pageBytes = 4096
/** A run of zeros that the guest has written. It is long enough to become a hole. */
const zeroBytes = 128 * 1024

/** Writes `<base>`, `<base>.kern` and `<base>.meta` as a bhyve would. `isLarge`: RAM of more than one slice. */
export function writeSet(base, tag, isLarge = false) {
  const memory = memoryOf(tag, isLarge)
  fs.writeFileSync(`${base}.kern`, kernelOf(tag))
  const descriptor = fs.openSync(base, 'w')
  fs.ftruncateSync(descriptor, memory.length)
  for (const [from, to] of writtenRanges(memory.length, isLarge))
    fs.writeSync(descriptor, memory, from, to - from, from)
  fs.closeSync(descriptor)
  fs.writeFileSync(`${base}.meta`, metadataOf(memory.length))
}

/** The size of guest RAM for a tag. */
export function memoryBytesOf(tag, isLarge) {
  return (isLarge ? usualSliceBytes : 0) + pageBytes * (1 + (tag % 5))
}

function memoryOf(tag, isLarge) {
  const bytes = memoryBytesOf(tag, isLarge)
  const memory = Buffer.alloc(bytes)
  for (const [from, to] of dataRanges(bytes, isLarge)) memory.fill(`ram of ${tag};`, from, to)
  return memory
}

/** Large RAM is sparse, so that the harness stays fast. It has data in each slice and across their border. */
function dataRanges(bytes, isLarge) {
  if (!isLarge) return [[0, bytes]]
  const border = usualSliceBytes
  return [
    [0, 3 * pageBytes],
    [border / 2 - pageBytes, border / 2],
    [border - pageBytes, border + pageBytes],
    [bytes - pageBytes / 2, bytes],
  ]
}

function writtenRanges(bytes, isLarge) {
  const zeros = isLarge ? [[usualSliceBytes / 2, usualSliceBytes / 2 + zeroBytes]] : []
  return [...dataRanges(bytes, isLarge), ...zeros]
}

function kernelOf(tag) {
  return Buffer.alloc(kernelBytes, `kern of ${tag};`)
}

function metadataOf(memoryBytes) {
  const basic = { ...metadata['basic metadata'], memsize: memoryBytes }
  return Buffer.from(JSON.stringify({ ...metadata, 'basic metadata': basic }))
}

/** The tag of a published checkpoint. Throws if any byte of its files is not that of this tag. */
export function tagOf(directory, name) {
  const read = (suffix) => fs.readFileSync(path.join(directory, `${name}.ckp${suffix}`))
  const memory = read('')
  const begin = /^ram of (\d+);/.exec(memory.toString('latin1', 0, pageBytes))
  if (begin === null) throw new Error(`the RAM of '${name}' is that of no checkpoint`)
  const tag = Number(begin[1])
  const differing = [
    ...(memory.equals(memoryOf(tag, memory.length > usualSliceBytes)) ? [] : ['RAM']),
    ...(read('.kern').equals(kernelOf(tag)) ? [] : ['.kern']),
    ...(read('.meta').equals(metadataOf(memory.length)) ? [] : ['.meta']),
    ...(isManifestOf(tag, path.join(directory, `${name}.ckp.manifest`)) ? [] : ['.manifest']),
  ]
  if (differing.length > 0)
    throw new Error(`'${name}' is ${tag}, but has other content in: ${differing.join(', ')}`)
  return tag
}

function isManifestOf(tag, file) {
  if (!fs.existsSync(file)) return true
  const { dialect = `tag ${tag}` } = JSON.parse(fs.readFileSync(file))
  return dialect === `tag ${tag}`
}
