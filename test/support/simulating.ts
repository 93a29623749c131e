/** Helpers for the tests of the simulator: requests byte by byte, connections, and directories for checkpoint files. */
import { closeSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { Socket } from 'node:net'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type Test as TestContext } from 'tap'
import { SimulatedBhyve, type SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { isFailure } from '../../dist/base/native.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import { decodeNvlist, NvType, type NvPair } from '../../dist/simulator/nvlist.js'
import { encodeNvlist } from '../../dist/simulator/nvlist_encoder.js'
import './plain_children.js'

// ---- bytes ----------------------------------------------------------------------------------------------

interface GoldenRequest {
  description: string
  filename: string
  suspend: boolean
  hex: string
  fd_position: number | null
  fds: number
  dialect: 'struct' | 'path' | 'descriptor'
}
interface Golden {
  requests: GoldenRequest[]
  replies: { hex: string }[]
}

export const native = loadSimulatorNative()
export const goldenDirectory = fileURLToPath(new URL('../fixtures/golden/', import.meta.url))
export const golden = JSON.parse(readFileSync(join(goldenDirectory, 'requests.json'), 'utf8')) as Golden
export const [goldenSuccess, goldenUnknownCommand] = golden.replies.map(({ hex }) => Buffer.from(hex, 'hex'))

/** The bytes of the request without the byte that carries the descriptor. */
export function payloadOf(request: GoldenRequest): Buffer {
  return Buffer.from(request.hex, 'hex').subarray(0, request.fd_position ?? undefined)
}

interface PairShape {
  type: number
  name: Buffer
  data: Buffer
  nameSize: number
  dataSize: bigint
  items: bigint
}
interface MessageShape {
  magic: number
  version: number
  flags: number
  descriptors: bigint
  size: bigint
}

export function pair(
  type: number,
  name: string | Buffer,
  data: Buffer,
  shape: Partial<PairShape> = {},
): Buffer {
  const text = Buffer.isBuffer(name) ? name : Buffer.from(`${name}\0`)
  const header = Buffer.alloc(19)
  header.writeUInt8(shape.type ?? type, 0)
  header.writeUInt16LE(shape.nameSize ?? text.length, 1)
  header.writeBigUInt64LE(shape.dataSize ?? BigInt(data.length), 3)
  header.writeBigUInt64LE(shape.items ?? 0n, 11)
  return Buffer.concat([header, text, data])
}

export function message(pairs: Buffer[], shape: Partial<MessageShape> = {}): Buffer {
  const body = Buffer.concat(pairs)
  const header = Buffer.alloc(19)
  header.writeUInt8(shape.magic ?? 0x6c, 0)
  header.writeUInt8(shape.version ?? 0, 1)
  header.writeUInt8(shape.flags ?? 0, 2)
  header.writeBigUInt64LE(shape.descriptors ?? 1n, 3)
  header.writeBigUInt64LE(shape.size ?? BigInt(body.length), 11)
  return Buffer.concat([header, body])
}

export function u64(value: bigint): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(BigInt.asUintN(64, value))
  return bytes
}

export const cmd = pair(NvType.string, 'cmd', Buffer.from('checkpoint\0'))
export const filename = pair(NvType.string, 'filename', Buffer.from('good\0'))
export const suspend = pair(NvType.bool, 'suspend', Buffer.from([0]))
export const fddir = pair(NvType.descriptor, 'fddir', u64(0n))
export const goodPairs = [cmd, filename, suspend, fddir]

export function nvlistRequest(name: string, options: { suspend?: boolean; fddir?: boolean } = {}): Buffer {
  const pairs: NvPair[] = [
    { name: 'cmd', type: NvType.string, value: 'checkpoint' },
    { name: 'filename', type: NvType.string, value: name },
    { name: 'suspend', type: NvType.bool, value: options.suspend ?? false },
  ]
  if (options.fddir ?? true) pairs.push({ name: 'fddir', type: NvType.descriptor, value: 0n })
  return encodeNvlist(pairs)
}

export function structRequest(op: number, path: string): Buffer {
  const bytes = Buffer.alloc(104)
  bytes.writeUInt32LE(op, 0)
  bytes.write(path, 4)
  return bytes
}

// ---- connections ----------------------------------------------------------------------------------------

export interface Sent {
  bytes: Buffer
  directory?: number | undefined
  /** Sends a byte without a descriptor instead of the byte that carries the descriptor. */
  bareByte?: boolean
}

export class Connection {
  readonly received: Buffer[] = []
  ended = false
  readonly end: Promise<Buffer>
  readonly #socket: Socket

  constructor(path: string, { bytes, directory, bareByte }: Sent, shutdown = true) {
    const descriptor = ok(native.connectStream(path), 'connect')
    if (bytes.length > 0) expectSent(native.send(descriptor, bytes, 0))
    if (directory !== undefined) expectSent(native.sendDescriptor(descriptor, directory))
    if (bareByte === true) expectSent(native.send(descriptor, Buffer.alloc(1), 0))
    if (shutdown) native.shutdownWrite(descriptor)
    this.#socket = new Socket({ fd: descriptor, readable: true, writable: false, allowHalfOpen: true })
    native.disown(descriptor)
    this.end = this.#collect()
  }

  close(): void {
    this.#socket.destroy()
  }

  async #collect(): Promise<Buffer> {
    this.#socket.on('data', (bytes: Buffer) => this.received.push(bytes))
    // A reset also means the end of the connection.
    this.#socket.on('error', () => undefined)
    await new Promise((closed) => this.#socket.once('close', closed))
    this.ended = true
    return Buffer.concat(this.received)
  }
}

/** Throws unless the call succeeded. Ignores EPIPE: a VM that rejects a request may close the connection early. */
export function expectSent(result: number | { errno: number; syscall: string }): void {
  if (!isFailure(result) || result.errno === constants.errno.EPIPE) return
  throw new Error(`${result.syscall}: errno ${String(result.errno)}`)
}

export function ok<T>(result: T, what: string): Exclude<T, { errno: number }> {
  if (isFailure(result)) throw new Error(`${what}: errno ${String(result.errno)}`)
  return result as Exclude<T, { errno: number }>
}

/** Sends a request. Resolves with the reply at the end of the connection. */
export function sendRequest(vm: { socketPath: string }, sent: Sent): Promise<Buffer> {
  return new Connection(vm.socketPath, sent).end
}

export async function until(condition: () => boolean, what: string): Promise<void> {
  for (const deadline = Date.now() + 20_000; !condition();) {
    if (Date.now() > deadline) throw new Error(`Timeout: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 2))
  }
}

export function isAlive(pid: number): boolean {
  const status = native.processStatus(pid)
  return !isFailure(status) && status.state !== 'zombie'
}

// ---- VMs and directories --------------------------------------------------------------------------------

export const mebibyte = 1024 * 1024
export const memoryBytes = 4 * mebibyte

export async function startVm(
  test: TestContext,
  options: Partial<SimulatorOptions> = {},
): Promise<SimulatedBhyve> {
  const vm = await SimulatedBhyve.start({ vm: 'vm0', memoryBytes, ...options })
  test.teardown(() => vm.stop())
  return vm
}

/** A directory into which a VM writes its checkpoint files. It is removed at the end of the test. */
export class OutputDirectory {
  readonly path: string
  readonly descriptor: number

  constructor(test: TestContext) {
    this.path = mkdtempSync(join(tmpdir(), 'checkpoint-'))
    this.descriptor = openSync(this.path, 'r')
    test.teardown(() => {
      closeSync(this.descriptor)
      rmSync(this.path, { recursive: true })
    })
  }

  get names(): string[] {
    return readdirSync(this.path).sort()
  }

  /** The size of a file, or -1 if it does not exist. */
  size(name: string): number {
    return statSync(join(this.path, name), { throwIfNoEntry: false })?.size ?? -1
  }

  bytes(name: string): Buffer {
    return readFileSync(join(this.path, name))
  }

  isComplete(name: string, memory = memoryBytes): boolean {
    if (this.size(name) !== memory || this.size(`${name}.kern`) <= 0) return false
    return this.bytes(`${name}.meta`).toString().endsWith('\n}\n')
  }
}

/** The names of the three files that bhyve writes. */
export function filesOf(name: string): string[] {
  return [name, `${name}.kern`, `${name}.meta`]
}

interface Rejection {
  why: string
  bytes: Buffer
  descriptors?: number
}

const longName = Buffer.concat([Buffer.alloc(2048, 'n'), Buffer.alloc(1)])
export const rejectedNvlists: Rejection[] = [
  { why: 'magic', bytes: message(goodPairs, { magic: 0x6d }) },
  { why: 'version', bytes: message(goodPairs, { version: 1 }) },
  { why: 'unknown flags', bytes: message(goodPairs, { flags: 0x04 }) },
  { why: 'public flag: ignore case', bytes: message(goodPairs, { flags: 0x01 }) },
  { why: 'public flag: no unique', bytes: message(goodPairs, { flags: 0x02 }) },
  { why: 'big-endian flag over little-endian data', bytes: message(goodPairs, { flags: 0x80 }) },
  { why: 'name size 0', bytes: message([...goodPairs, pair(NvType.null, Buffer.alloc(0), Buffer.alloc(0))]) },
  {
    why: 'name size over 2048',
    bytes: message([...goodPairs, pair(NvType.null, longName, Buffer.alloc(0))]),
  },
  { why: 'NUL inside a name', bytes: message([...goodPairs, pair(NvType.null, 'a\0b', Buffer.alloc(0))]) },
  {
    why: 'name without NUL',
    bytes: message([...goodPairs, pair(NvType.null, Buffer.from('ab'), Buffer.alloc(0))]),
  },
  {
    why: 'string without NUL',
    bytes: message([cmd, suspend, fddir, pair(NvType.string, 'filename', Buffer.from('good'))]),
  },
  {
    why: 'NUL inside a string',
    bytes: message([cmd, suspend, fddir, pair(NvType.string, 'filename', Buffer.from('go\0od\0'))]),
  },
  {
    why: 'empty string data',
    bytes: message([cmd, suspend, fddir, pair(NvType.string, 'filename', Buffer.alloc(0))]),
  },
  { why: 'null with data', bytes: message([...goodPairs, pair(NvType.null, 'n', Buffer.from([0]))]) },
  {
    why: 'bool of two bytes',
    bytes: message([cmd, filename, fddir, pair(NvType.bool, 'suspend', Buffer.alloc(2))]),
  },
  {
    why: 'bool of no bytes',
    bytes: message([cmd, filename, fddir, pair(NvType.bool, 'suspend', Buffer.alloc(0))]),
  },
  { why: 'bool 2', bytes: message([cmd, filename, fddir, pair(NvType.bool, 'suspend', Buffer.from([2]))]) },
  { why: 'number of four bytes', bytes: message([...goodPairs, pair(NvType.number, 'n', Buffer.alloc(4))]) },
  {
    why: 'descriptor of four bytes',
    bytes: message([cmd, filename, suspend, pair(NvType.descriptor, 'fddir', Buffer.alloc(4))]),
  },
  {
    why: 'descriptor index too high',
    bytes: message([cmd, filename, suspend, pair(NvType.descriptor, 'fddir', u64(1n))]),
  },
  {
    why: 'descriptor index negative',
    bytes: message([cmd, filename, suspend, pair(NvType.descriptor, 'fddir', u64(-1n))]),
  },
  { why: 'empty binary', bytes: message([...goodPairs, pair(NvType.binary, 'b', Buffer.alloc(0))]) },
  { why: 'duplicate key', bytes: message([...goodPairs, suspend]) },
  { why: 'trailing bytes', bytes: message([...goodPairs, Buffer.alloc(3)]) },
  { why: 'trailing zero header', bytes: message([...goodPairs, Buffer.alloc(20)]) },
  { why: 'type 0', bytes: message([...goodPairs, pair(0, 'x', Buffer.alloc(0))]) },
  { why: 'type 13', bytes: message([...goodPairs, pair(13, 'x', Buffer.alloc(0))]) },
  { why: 'type 253', bytes: message([...goodPairs, pair(253, 'x', Buffer.alloc(0))]) },
  { why: 'UP at the top', bytes: message([...goodPairs, pair(NvType.up, '', Buffer.alloc(0))]) },
  {
    why: 'ARRAY_NEXT at the top',
    bytes: message([...goodPairs, pair(NvType.arrayNext, '', Buffer.alloc(0))]),
  },
  {
    why: 'data beyond the end',
    bytes: message([...goodPairs, pair(NvType.binary, 'b', Buffer.alloc(4), { dataSize: 5n })]),
  },
  {
    why: 'huge data size',
    bytes: message([...goodPairs, pair(NvType.binary, 'b', Buffer.alloc(4), { dataSize: 2n ** 64n - 1n })]),
  },
  { why: 'cut inside a pair header', bytes: message([...goodPairs, suspend.subarray(0, 10)]) },
  {
    why: 'nested size that stops at its own end',
    bytes: message([pair(NvType.nvlist, 'l', message([suspend], { size: 1n })), ...goodPairs]),
  },
  {
    why: 'nested list of size 0',
    bytes: message([...goodPairs, pair(NvType.nvlist, 'l', message([]), { dataSize: 0n })]),
  },
  {
    why: 'array of no items',
    bytes: message([...goodPairs, pair(NvType.numberArray, 'a', Buffer.alloc(8))]),
  },
  {
    why: 'array of fewer items than data',
    bytes: message([...goodPairs, pair(NvType.numberArray, 'a', Buffer.alloc(16), { items: 1n })]),
  },
  {
    why: 'array of overflowing items',
    bytes: message([...goodPairs, pair(NvType.numberArray, 'a', Buffer.alloc(8), { items: 2n ** 61n + 1n })]),
  },
  {
    why: 'string array with too few strings',
    bytes: message([...goodPairs, pair(NvType.stringArray, 'a', Buffer.from('a\0b\0'), { items: 3n })]),
  },
  {
    why: 'string array without NUL',
    bytes: message([...goodPairs, pair(NvType.stringArray, 'a', Buffer.from('a\0b'), { items: 2n })]),
  },
  {
    why: 'list array of more items than the message can hold',
    bytes: message([...goodPairs, pair(NvType.nvlistArray, 'a', message([]), { items: 2n ** 40n })]),
  },
  {
    why: 'descriptor array with a bad index',
    bytes: message([...goodPairs, pair(NvType.descriptorArray, 'a', u64(1n), { items: 1n })]),
  },
]

// ---- metadata and RAM -----------------------------------------------------------------------------------

export interface GoldenMetadata {
  'basic metadata': { ncpus: number; vmname: string; memsize: number; memflags: number }
  kern_structs?: { device: string; size: number; file_offset: number }[]
  structs?: { debug_name: string; size: number; file_offset: number }[]
  devices: { device?: string; snapshot_req?: string; size: number; file_offset: number }[]
}

// ---- replies --------------------------------------------------------------------------------------------

export function errorIn(answer: Buffer): unknown {
  return decodeNvlist(answer, 0)?.find(({ name }) => name === 'error')?.value
}
