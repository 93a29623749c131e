/** Receives and parses one request, in the same way as the bhyve of each dialect. */
import { isFailure } from '../base/native.js'
import type { SimulatorNative } from './native_calls.js'
import { decodeNvlist, decodeNvlistHeader, NvHeader, NvType, type NvPair } from './nvlist.js'
import { errnoOf, type SimulatedDialect } from './simulator_options.js'
import type { Coroutine } from './reactor.js'

export interface CheckpointRequest {
  readonly suspend: boolean
  /** A full path, or a file name in `directory`. */
  readonly filename: string
  /** Open descriptor of a directory. */
  readonly directory: number | undefined
}

/**
 * The result of receiving a request. `refused`: bhyve rejects the request before it touches the VM. `failed`: the
 * request was not received completely or is not a valid nvlist.
 */
export type Received =
  | { readonly kind: 'checkpoint'; readonly request: CheckpointRequest }
  | { readonly kind: 'refused'; readonly text: string }
  | { readonly kind: 'failed' | 'no-command' }

/** The state that bhyve keeps between requests, and the descriptors of the current request. */
interface RequestState {
  /** The buffer of the `struct` dialect. Each request overwrites the previous one. */
  readonly structBuffer: Buffer
  /** The descriptors sent with the request. The caller closes them. */
  readonly descriptors: number[]
}

export const structSize = 104

const opSize = 4
const opCheckpoint = 0
const opSuspend = 1
/** libnv tries to allocate any size. The simulator rejects sizes above this limit. */
const largestPayload = 64n * 1024n * 1024n
const largestRead = 1024 * 1024
const maxDescriptors = 1024n
/** libnv on FreeBSD sends at most this many descriptors with one byte. */
const descriptorsPerMessage = 85

export function newRequestState(): RequestState {
  // In bhyve, the buffer has undefined content from the stack before the first request. Use an invalid operation.
  return { structBuffer: Buffer.alloc(structSize, 0xff), descriptors: [] }
}

/** Runs in the middle of the request. Anything but undefined ends it: the result is `failed`. */
type Halfway = () => Coroutine<unknown>

export function receiveRequest(
  native: SimulatorNative,
  socket: number,
  dialect: SimulatedDialect,
  state: RequestState,
  halfway: Halfway,
): Coroutine<Received> {
  return dialect === 'struct'
    ? receiveStruct(native, socket, state.structBuffer, halfway)
    : receiveNvlist(native, socket, dialect, state.descriptors, halfway)
}

function* receiveStruct(
  native: SimulatorNative,
  socket: number,
  buffer: Buffer,
  halfway: Halfway,
): Coroutine<Received> {
  let received = 0
  for (const wanted of [structSize / 2, structSize]) {
    while (received < wanted) {
      const bytes = yield* receiveSome(native, socket, wanted - received)
      if (bytes === undefined) return { kind: 'failed' }
      // If the connection ends early, the rest of the buffer still contains the previous request. bhyve executes the
      // buffer nevertheless.
      if (bytes.length === 0) return parseStruct(buffer)
      bytes.copy(buffer, received)
      received += bytes.length
    }
    if (wanted < structSize && (yield* halfway()) !== undefined) return { kind: 'failed' }
  }
  return parseStruct(buffer)
}

function parseStruct(buffer: Buffer): Received {
  const op = littleEndianMachine() ? buffer.readUInt32LE(0) : buffer.readUInt32BE(0)
  if (op !== opCheckpoint && op !== opSuspend) return { kind: 'refused', text: 'unrecognized operation' }
  const path = buffer.subarray(opSize)
  const end = path.indexOf(0)
  const filename = path.subarray(0, end === -1 ? path.length : end).toString()
  return { kind: 'checkpoint', request: { suspend: op === opSuspend, filename, directory: undefined } }
}

function littleEndianMachine(): boolean {
  return new Uint8Array(new Uint16Array([1]).buffer)[0] === 1
}

function* receiveNvlist(
  native: SimulatorNative,
  socket: number,
  dialect: SimulatedDialect,
  descriptors: number[],
  halfway: Halfway,
): Coroutine<Received> {
  const headerBytes = yield* receiveAll(native, socket, NvHeader.size)
  const header = headerBytes && decodeNvlistHeader(headerBytes)
  if (headerBytes === undefined || header === undefined || header.size > largestPayload)
    return { kind: 'failed' }
  const size = Number(header.size)
  const half = yield* receiveAll(native, socket, Math.floor(size / 2))
  if (half === undefined || (yield* halfway()) !== undefined) return { kind: 'failed' }
  const rest = yield* receiveAll(native, socket, Math.ceil(size / 2))
  if (rest === undefined || header.descriptors > maxDescriptors) return { kind: 'failed' }
  const announced = Number(header.descriptors)
  if (!(yield* receiveDescriptors(native, socket, announced, descriptors))) return { kind: 'failed' }
  const pairs = decodeNvlist(Buffer.concat([headerBytes, half, rest]), announced)
  return pairs === undefined ? { kind: 'failed' } : parseCommand(pairs, dialect, descriptors)
}

function parseCommand(pairs: NvPair[], dialect: SimulatedDialect, descriptors: readonly number[]): Received {
  const command = find(pairs, 'cmd', NvType.string)
  if (typeof command !== 'string') return { kind: 'no-command' }
  if (command !== 'checkpoint') return { kind: 'refused', text: `command '${command}' not found` }
  const filename = find(pairs, 'filename', NvType.string)
  const suspend = find(pairs, 'suspend', NvType.bool)
  const index = find(pairs, 'fddir', NvType.descriptor)
  const directory = typeof index === 'bigint' ? descriptors[Number(index)] : undefined
  const complete = dialect === 'path' || directory !== undefined
  if (typeof filename !== 'string' || typeof suspend !== 'boolean' || !complete) {
    return { kind: 'refused', text: 'invalid argument' }
  }
  const inDirectory = dialect === 'path' ? undefined : directory
  return { kind: 'checkpoint', request: { suspend, filename, directory: inDirectory } }
}

function find(pairs: readonly NvPair[], name: string, type: number): NvPair['value'] | undefined {
  return pairs.find((pair) => pair.name === name && pair.type === type)?.value
}

/** Returns undefined if the connection ends or breaks before all bytes were received. */
function* receiveAll(native: SimulatorNative, socket: number, size: number): Coroutine<Buffer | undefined> {
  const parts: Buffer[] = []
  let missing = size
  while (missing > 0) {
    const bytes = yield* receiveSome(native, socket, missing)
    if (bytes === undefined || bytes.length === 0) return undefined
    parts.push(bytes)
    missing -= bytes.length
  }
  return Buffer.concat(parts)
}

/** Returns an empty buffer at the end of the connection, and undefined if the connection broke. */
function* receiveSome(native: SimulatorNative, socket: number, max: number): Coroutine<Buffer | undefined> {
  for (;;) {
    const bytes = native.simulator.receive(socket, Math.min(max, largestRead))
    if (!isFailure(bytes)) return bytes
    if (bytes.errno !== errnoOf('EAGAIN')) return undefined
    yield { readable: socket }
  }
}

/**
 * Receives the descriptors, which come in a separate message of one byte. Descriptors that were sent with the payload
 * were discarded by recv().
 */
function* receiveDescriptors(
  native: SimulatorNative,
  socket: number,
  announced: number,
  into: number[],
): Coroutine<boolean> {
  while (into.length < announced) {
    const expected = Math.min(announced - into.length, descriptorsPerMessage)
    const message = native.simulator.receiveDescriptors(socket, expected)
    if (isFailure(message)) {
      if (message.errno !== errnoOf('EAGAIN')) return false
      yield { readable: socket }
      continue
    }
    into.push(...message.descriptors)
    if (message.descriptors.length !== expected || message.truncated) return false
  }
  return true
}
