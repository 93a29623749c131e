/**
 * Parses bhyve's `.meta` file: pretty-printed JSON that libxo writes in a fixed order (protocol.md section 6). It has
 * two shapes. bhyve of dialect `descriptor` lists kernel structures in `kern_structs` and identifies them by `device`.
 * bhyve of `struct` and `path` lists them in `structs`, names them in `debug_name` and identifies them by
 * `snapshot_req`. Metadata are complete only if bhyve's own loader accepts them (`lookup_dev()` and `lookup_struct()`
 * in usr.sbin/bhyve/snapshot.c).
 */
import { Buffer, isUtf8 } from 'node:buffer'
import type { Problem } from '../base/problem.js'
import { type Generation, generationOfNumbers } from './generation.js'
import { JsonFault, type JsonValue, lineAndColumn, readJson } from './strict_json.js'

interface Section {
  name: string
  size: number
  offset: number
}

export interface Metadata {
  vm: string
  cpus: number
  memoryBytes: number
  kernelStructures: readonly Section[]
  /** The older shape has one entry per device type, with size 0 if the VM has no such device. */
  devices: readonly Section[]
  /** The newer shape: device names contain PCI addresses. */
  devicesHaveAddresses: boolean
  /** The generation of bhyve that can restore the checkpoint. */
  generation: Generation
}

type MetadataResult = { metadata: Metadata } | { problem: Problem }

/** What an inspection needs of the metadata. */
export interface MetadataSummary {
  readonly vm: string
  readonly cpus: number
  readonly memoryBytes: number
  readonly devices: readonly string[]
  readonly devicesHaveAddresses: boolean
  readonly generation: Generation
  readonly kernelBytes: number
}

type SummaryResult = { summary: MetadataSummary } | { problem: Problem }

/** bhyve writes a few kilobytes. Larger files are not read. */
export const metadataMaxBytes = 1024 * 1024
/** Far more than the state of all devices of a VM. Reading a larger file would only be slow. */
export const kernelMaxBytes = 1024 * 1024 * 1024
/** More RAM than any host has. The digests of so much RAM still fit a manifest (`manifestMaxBytes`). */
export const memoryMaxBytes = 2 ** 46
/** The largest `VM_MAXCPU` that sys/amd64/vmm/vmm.c has had, in FreeBSD 14. A host may allow fewer. */
const maxCpus = 1024
/** bhyve stores the flags in an int. */
const maxFlags = 2 ** 31 - 1
/** For names of VMs and devices. A command line cannot give longer names, and messages must stay readable. */
const nameMaxLength = 255

type JsonObject = JsonValue & { kind: 'object' }

/** A section with its offset in the text, and the number by which the older loaders find it. */
interface Entry extends Section {
  at: number
  number: number | undefined
}

interface Shape {
  structuresKey: string
  structureNameKey: string
  structureNumberKey?: string
  deviceNameKey: string
  devicesHaveAddresses: boolean
  structures: readonly string[]
}

const commonStructures = ['vhpet', 'vm', 'vioapic', 'vlapic', 'vmcx', 'vatpit', 'vatpic', 'vpmtmr', 'vrtc']

const shapes: readonly Shape[] = [
  {
    structuresKey: 'kern_structs',
    structureNameKey: 'device',
    deviceNameKey: 'device',
    devicesHaveAddresses: true,
    structures: commonStructures,
  },
  {
    structuresKey: 'structs',
    structureNameKey: 'debug_name',
    structureNumberKey: 'snapshot_req',
    deviceNameKey: 'snapshot_req',
    devicesHaveAddresses: false,
    structures: [...commonStructures, 'vmx'],
  },
]

class MetadataFault extends Error {
  readonly code: 'metadata-invalid' | 'metadata-incomplete'
  /** Offset in the text, if the fault has a single position. */
  readonly at: number | undefined

  constructor(code: 'metadata-invalid' | 'metadata-incomplete', message: string, at?: number) {
    super(message)
    this.code = code
    this.at = at
  }
}

const invalid = (message: string, at?: number): MetadataFault =>
  new MetadataFault('metadata-invalid', message, at)
const incomplete = (message: string, at?: number): MetadataFault =>
  new MetadataFault('metadata-incomplete', message, at)

/** Returns a problem for any invalid content; does not throw. */
export function parseMetadata(content: string | Buffer): MetadataResult {
  const text = typeof content === 'string' ? content : content.toString('utf8')
  try {
    const root = rootOf(text)
    if (typeof content !== 'string' && !isUtf8(content)) throw invalid('the metadata file is not valid UTF-8')
    return { metadata: metadataFrom(root) }
  } catch (fault) {
    if (!(fault instanceof MetadataFault)) throw fault
    return { problem: { code: fault.code, message: withPosition(fault, text) } }
  }
}

/** Larger metadata are parsed each time. A thread must not keep a megabyte. */
const keptMaxBytes = 16 * 1024
/**
 * What this thread has parsed last. bhyve records neither a time nor an id in the metadata, so the checkpoints of a VM
 * usually have the same bytes. Parsing them took most of the time of a listing.
 */
let last: { content: Buffer; result: SummaryResult } | undefined

/** As `parseMetadata`, for the files of many checkpoints in turn. Callers must not change the result. */
export function summarizeMetadata(content: Buffer): SummaryResult {
  if (last?.content.equals(content) === true) return last.result
  const parsed = parseMetadata(content)
  const result = 'metadata' in parsed ? { summary: summaryOf(parsed.metadata) } : parsed
  // `content` is valid only until the next read.
  if (content.length <= keptMaxBytes) last = { content: Buffer.from(content), result }
  return result
}

function summaryOf(metadata: Metadata): MetadataSummary {
  const { vm, cpus, memoryBytes, devicesHaveAddresses, generation } = metadata
  const devices = deviceNames(metadata)
  return {
    vm,
    cpus,
    memoryBytes,
    devices,
    devicesHaveAddresses,
    generation,
    kernelBytes: kernelBytes(metadata),
  }
}

function withPosition({ message, at }: MetadataFault, text: string): string {
  if (at === undefined) return message
  const { line, column } = lineAndColumn(text, at)
  return `${message} (line ${line}, column ${column})`
}

/**
 * The devices with a saved state. The older shape lists devices that the VM does not have with size 0. Since FreeBSD
 * 14, bhyve cannot restore a device with an empty state, so a restore plan must report it like a device that is not
 * listed.
 */
export function deviceNames(metadata: Metadata): string[] {
  return metadata.devices.filter((device) => device.size > 0).map((device) => device.name)
}

/** The sum of all sections, which the size of `.kern` must match. */
export function kernelBytes(metadata: Metadata): number {
  const sections = [...metadata.kernelStructures, ...metadata.devices]
  return sections.reduce((sum, section) => sum + section.size, 0)
}

function rootOf(text: string): JsonObject {
  if (text === '') throw incomplete('the metadata file is empty: bhyve failed before it wrote the metadata')
  try {
    return objectFrom(readJson(text), 'the content of the metadata file')
  } catch (fault) {
    if (!(fault instanceof JsonFault)) throw fault
    if (isTruncated(text))
      throw incomplete('the metadata file is truncated: bhyve failed while it saved the VM')
    throw invalid(`bhyve would reject or misread the metadata file: ${fault.message}`, fault.at)
  }
}

/** True if a bracket or string is not closed. A save that fails halfway leaves such a file. */
function isTruncated(text: string): boolean {
  let depth = 0
  let inString = false
  for (let index = 0; index < text.length; index++) {
    const character = text[index]
    if (inString && character === '\\') index++
    else if (character === '"') inString = !inString
    else if (!inString && (character === '{' || character === '[')) depth++
    else if (!inString && (character === '}' || character === ']')) depth--
  }
  return text.startsWith('{') && (inString || depth > 0)
}

function metadataFrom(root: JsonObject): Metadata {
  const shape = shapeOf(root)
  const basic = objectFrom(property(root, 'basic metadata', 'the metadata file'), "'basic metadata'")
  const structures = entriesFrom(root, shape.structuresKey, shape.structureNameKey, shape.structureNumberKey)
  const devices = entriesFrom(root, 'devices', shape.deviceNameKey)
  assertStructures(structures, shape)
  assertContiguous([...structures, ...devices])
  const memflags = basic.members.get('memflags')
  if (memflags !== undefined) countFrom(memflags, "'memflags'", maxFlags)
  return {
    vm: nameFrom(property(basic, 'vmname', "'basic metadata'"), "'vmname'"),
    cpus: cpusFrom(property(basic, 'ncpus', "'basic metadata'")),
    memoryBytes: countFrom(property(basic, 'memsize', "'basic metadata'"), "'memsize'", memoryMaxBytes),
    kernelStructures: structures.map(sectionOf),
    devices: devices.map(sectionOf),
    devicesHaveAddresses: shape.devicesHaveAddresses,
    generation: shape.devicesHaveAddresses ? '14' : generationFrom(structures),
  }
}

function shapeOf({ members }: JsonObject): Shape {
  const [shape, other] = shapes.filter((candidate) => members.has(candidate.structuresKey))
  if (shape === undefined) throw incomplete('the metadata file has no list of kernel structures')
  const where = members.get(other?.structuresKey ?? '')?.at
  if (other !== undefined)
    throw invalid(`the metadata file has both '${shape.structuresKey}' and '${other.structuresKey}'`, where)
  return shape
}

function entriesFrom(root: JsonObject, key: string, nameKey: string, numberKey?: string): Entry[] {
  const list = property(root, key, 'the metadata file')
  if (list.kind !== 'list') throw invalid(`'${key}' is not a list`, list.at)
  const entries = list.items.map((item, index) => {
    const where = `'${key}' entry ${String(index)}`
    const entry = objectFrom(item, where)
    const count = (of: string) => countFrom(property(entry, of, where), `${where} '${of}'`)
    return {
      at: item.at,
      name: nameFrom(property(entry, nameKey, where), `${where} '${nameKey}'`),
      number: numberKey === undefined ? undefined : count(numberKey),
      size: count('size'),
      offset: count('file_offset'),
    }
  })
  assertDistinct(entries)
  return entries
}

/** If several entries have the same name or number, bhyve uses the first one, even if it is the wrong one. */
function assertDistinct(entries: readonly Entry[]): void {
  const seen = new Set<string | number>()
  for (const { name, number, at } of entries) {
    if (seen.has(name)) throw invalid(`section '${name}' is listed twice`, at)
    if (number !== undefined && seen.has(number))
      throw invalid(`section '${name}' repeats the number ${number} of another section`, at)
    seen.add(name)
    if (number !== undefined) seen.add(number)
  }
}

function assertStructures(structures: readonly Entry[], shape: Shape): void {
  for (const name of shape.structures) {
    const structure = structures.find((section) => section.name === name)
    if (structure === undefined) throw incomplete(`kernel structure '${name}' is missing`)
    if (structure.size === 0) throw incomplete(`kernel structure '${name}' is empty`, structure.at)
  }
}

function generationFrom(structures: readonly Entry[]): Generation {
  const numbers = new Map(structures.map(({ name, number }) => [name, number ?? -1]))
  const generation = generationOfNumbers(numbers)
  if (generation !== undefined) return generation
  throw invalid("no known bhyve release uses these 'snapshot_req' numbers", structures[0]?.at)
}

function assertContiguous(entries: readonly Entry[]): void {
  let end = 0
  for (const { name, offset, size, at } of entries) {
    if (offset !== end) throw invalid(`section '${name}' starts at ${offset}, not at ${end}`, at)
    end += size
  }
  if (end > kernelMaxBytes) throw invalid('the sections add up to more bytes than bhyve ever writes')
}

function sectionOf({ name, size, offset }: Entry): Section {
  return { name, size, offset }
}

function objectFrom(value: JsonValue, what: string): JsonObject {
  if (value.kind !== 'object') throw invalid(`${what} is not an object`, value.at)
  return value
}

function property({ members, at }: JsonObject, key: string, what: string): JsonValue {
  const value = members.get(key)
  if (value === undefined) throw incomplete(`${what} has no '${key}'`, at)
  return value
}

function nameFrom(value: JsonValue, what: string): string {
  if (value.kind !== 'string') throw invalid(`${what} is not a string`, value.at)
  const { text, at } = value
  if (text.length > nameMaxLength || /\p{Cc}/u.test(text)) throw invalid(`${what} is not a valid name`, at)
  return text
}

function cpusFrom(value: JsonValue): number {
  const cpus = countFrom(value, "'ncpus'", maxCpus)
  if (cpus === 0) throw invalid("'ncpus' is 0, but bhyve cannot start a VM without vCPUs", value.at)
  return cpus
}

function countFrom(value: JsonValue, what: string, max = Number.MAX_SAFE_INTEGER): number {
  if (value.kind !== 'number' || value.value < 0n)
    throw invalid(`${what} is not a non-negative whole number`, value.at)
  if (value.value <= max) return Number(value.value)
  throw invalid(`${what} is ${value.value}, but bhyve accepts at most ${max}`, value.at)
}
