/**
 * bhyve's `.meta`: pretty-printed JSON that libxo writes in a fixed order (protocol.md section 6). Two shapes:
 * `descriptor` and `reply` name structures in `kern_structs` by `device`; `struct` and `path` in `structs` by
 * `debug_name`.
 */
import type { Problem } from '../types.js'

export interface Section {
  name: string
  size: number
  offset: number
}

export interface Metadata {
  vm: string
  cpus: number
  memoryBytes: number
  kernelStructures: readonly Section[]
  /** In the older shape one per type, and size 0 where the VM has none. */
  devices: readonly Section[]
  /** Devices are named with their places: the newer shape. */
  devicesHavePlaces: boolean
}

export type MetadataResult = { metadata: Metadata } | { problem: Problem }

/** bhyve writes a few kilobytes; what is larger is not read. */
export const metadataMaxBytes = 4 * 1024 * 1024
/** Far more than the state of all devices of a VM: what claims more would only be slow to read. */
export const kernelMaxBytes = 1024 * 1024 * 1024
/** More RAM than any host has. Its digests still fit a manifest (`manifestMaxBytes`). */
export const memoryMaxBytes = 2 ** 46
/** Of a VM or a device: what no command line could give would only mislead whoever reads it in a message. */
const nameMaxLength = 255

type JsonObject = Record<string, unknown>

interface Shape {
  structuresKey: string
  structureNameKey: string
  deviceNameKey: string
  devicesHavePlaces: boolean
  structures: readonly string[]
}

const commonStructures = ['vhpet', 'vm', 'vioapic', 'vlapic', 'vmcx', 'vatpit', 'vatpic', 'vpmtmr', 'vrtc']

const shapes: readonly Shape[] = [
  {
    structuresKey: 'kern_structs',
    structureNameKey: 'device',
    deviceNameKey: 'device',
    devicesHavePlaces: true,
    structures: commonStructures,
  },
  {
    structuresKey: 'structs',
    structureNameKey: 'debug_name',
    deviceNameKey: 'snapshot_req',
    devicesHavePlaces: false,
    structures: [...commonStructures, 'vmx'],
  },
]

class MetadataFault extends Error {
  readonly code: 'metadata-invalid' | 'metadata-incomplete'

  constructor(code: 'metadata-invalid' | 'metadata-incomplete', message: string) {
    super(message)
    this.code = code
  }
}

const invalid = (message: string): MetadataFault => new MetadataFault('metadata-invalid', message)
const incomplete = (message: string): MetadataFault => new MetadataFault('metadata-incomplete', message)

/** Never throws: what is wrong is a problem. */
export function parseMetadata(text: string): MetadataResult {
  try {
    return { metadata: metadataFrom(parseJson(text)) }
  } catch (fault) {
    if (!(fault instanceof MetadataFault)) throw fault
    return { problem: { code: fault.code, message: fault.message } }
  }
}

/** Devices the VM has; the older shape lists those it has not with size 0. */
export function deviceNames(metadata: Metadata): string[] {
  return metadata.devices.filter((device) => device.size > 0).map((device) => device.name)
}

/** The sum of all sections: what `.kern` must hold. */
export function kernelBytes(metadata: Metadata): number {
  return sections(metadata).reduce((sum, section) => sum + section.size, 0)
}

function sections(metadata: Metadata): Section[] {
  return [...metadata.kernelStructures, ...metadata.devices]
}

function parseJson(text: string): JsonObject {
  if (text === '') throw incomplete('the metadata are empty: bhyve failed before it wrote them')
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    if (isOpenEnded(text))
      throw incomplete('the metadata end in the middle: bhyve failed while it saved the VM')
    throw invalid('the metadata are not JSON')
  }
  return objectFrom(value, 'the metadata')
}

/** True where brackets or a string are still open at the end, as a run that failed half-way leaves it. */
function isOpenEnded(text: string): boolean {
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
  const shape = shapes.find((candidate) => Object.hasOwn(root, candidate.structuresKey))
  if (shape === undefined) throw incomplete('the metadata list no kernel structures')
  const basic = objectFrom(property(root, 'basic metadata', 'the metadata'), "'basic metadata'")
  const metadata = {
    vm: nameFrom(property(basic, 'vmname', "'basic metadata'"), "'vmname'"),
    cpus: countFrom(property(basic, 'ncpus', "'basic metadata'"), "'ncpus'"),
    memoryBytes: memoryFrom(property(basic, 'memsize', "'basic metadata'")),
    kernelStructures: sectionsFrom(root, shape.structuresKey, shape.structureNameKey),
    devices: sectionsFrom(root, 'devices', shape.deviceNameKey),
    devicesHavePlaces: shape.devicesHavePlaces,
  }
  assertStructures(metadata, shape)
  assertContiguous(metadata)
  return metadata
}

function sectionsFrom(root: JsonObject, key: string, nameKey: string): Section[] {
  const list = property(root, key, 'the metadata')
  if (!Array.isArray(list)) throw invalid(`'${key}' is not a list`)
  return list.map((entry: unknown, index) => {
    const where = `'${key}' entry ${String(index)}`
    const section = objectFrom(entry, where)
    return {
      name: nameFrom(property(section, nameKey, where), `${where} '${nameKey}'`),
      size: countFrom(property(section, 'size', where), `${where} 'size'`),
      offset: countFrom(property(section, 'file_offset', where), `${where} 'file_offset'`),
    }
  })
}

function assertStructures(metadata: Metadata, shape: Shape): void {
  for (const name of shape.structures) {
    const structure = metadata.kernelStructures.find((section) => section.name === name)
    if (structure === undefined) throw incomplete(`kernel structure '${name}' is missing`)
    if (structure.size === 0) throw incomplete(`kernel structure '${name}' is empty`)
  }
}

function assertContiguous(metadata: Metadata): void {
  let end = 0
  for (const section of sections(metadata)) {
    if (section.offset !== end) {
      throw invalid(`section '${section.name}' starts at ${String(section.offset)}, not at ${String(end)}`)
    }
    end += section.size
  }
  if (end > kernelMaxBytes) throw invalid('the sections add up to more than bhyve ever writes')
}

function objectFrom(value: unknown, what: string): JsonObject {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw invalid(`${what} is not an object`)
  return value as JsonObject
}

function property(object: JsonObject, key: string, what: string): unknown {
  if (!Object.hasOwn(object, key)) throw incomplete(`${what} has no '${key}'`)
  return object[key]
}

function nameFrom(value: unknown, what: string): string {
  if (typeof value !== 'string') throw invalid(`${what} is not a text`)
  if (value.length > nameMaxLength || /\p{Cc}/u.test(value)) throw invalid(`${what} is no name`)
  return value
}

function memoryFrom(value: unknown): number {
  const memoryBytes = countFrom(value, "'memsize'")
  if (memoryBytes > memoryMaxBytes) throw invalid("'memsize' is more than any host has")
  return memoryBytes
}

function countFrom(value: unknown, what: string): number {
  if (!Number.isSafeInteger(value) || (value as number) < 0) throw invalid(`${what} is not a whole number`)
  return value as number
}
