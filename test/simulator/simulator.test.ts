import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { createServer, Socket } from 'node:net'
import { constants, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { deflateRawSync } from 'node:zlib'
import t, { type Test as TestContext } from 'tap'
import { SimulatedBhyve, SimulatedFleet, type SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { isFailure } from '../../dist/base/native.js'
import { SyntheticMemory } from '../../dist/simulator/guest.js'
import { MetadataWriter, type MetadataShape } from '../../dist/simulator/metadata_writer.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import { decodeNvlist, NvType, type NvPair } from '../../dist/simulator/nvlist.js'
import { encodeNvlist } from '../../dist/simulator/nvlist_encoder.js'
import { newRequestState, receiveRequest } from '../../dist/simulator/receive_request.js'
import '../support/plain_children.js'

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

// Most of the time goes into starting processes.
t.jobs = 4
t.setTimeout(120_000)

const native = loadSimulatorNative()
// Reading it means setting it: once, and both times to a safe value.
const umask = process.umask(0o077)
process.umask(umask)
const goldenFolder = fileURLToPath(new URL('../fixtures/golden/', import.meta.url))
const golden = JSON.parse(readFileSync(join(goldenFolder, 'requests.json'), 'utf8')) as Golden
const [goldenSuccess, goldenUnknownCommand] = golden.replies.map(({ hex }) => Buffer.from(hex, 'hex'))

/** The bytes before the one that carries the descriptor. */
function payloadOf(request: GoldenRequest): Buffer {
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

function pair(type: number, name: string | Buffer, data: Buffer, shape: Partial<PairShape> = {}): Buffer {
  const text = Buffer.isBuffer(name) ? name : Buffer.from(`${name}\0`)
  const header = Buffer.alloc(19)
  header.writeUInt8(shape.type ?? type, 0)
  header.writeUInt16LE(shape.nameSize ?? text.length, 1)
  header.writeBigUInt64LE(shape.dataSize ?? BigInt(data.length), 3)
  header.writeBigUInt64LE(shape.items ?? 0n, 11)
  return Buffer.concat([header, text, data])
}

function message(pairs: Buffer[], shape: Partial<MessageShape> = {}): Buffer {
  const body = Buffer.concat(pairs)
  const header = Buffer.alloc(19)
  header.writeUInt8(shape.magic ?? 0x6c, 0)
  header.writeUInt8(shape.version ?? 0, 1)
  header.writeUInt8(shape.flags ?? 0, 2)
  header.writeBigUInt64LE(shape.descriptors ?? 1n, 3)
  header.writeBigUInt64LE(shape.size ?? BigInt(body.length), 11)
  return Buffer.concat([header, body])
}

function u64(value: bigint): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(BigInt.asUintN(64, value))
  return bytes
}

const cmd = pair(NvType.string, 'cmd', Buffer.from('checkpoint\0'))
const filename = pair(NvType.string, 'filename', Buffer.from('good\0'))
const suspend = pair(NvType.bool, 'suspend', Buffer.from([0]))
const fddir = pair(NvType.descriptor, 'fddir', u64(0n))
const goodPairs = [cmd, filename, suspend, fddir]

function nvlistRequest(name: string, options: { suspend?: boolean; fddir?: boolean } = {}): Buffer {
  const pairs: NvPair[] = [
    { name: 'cmd', type: NvType.string, value: 'checkpoint' },
    { name: 'filename', type: NvType.string, value: name },
    { name: 'suspend', type: NvType.bool, value: options.suspend ?? false },
  ]
  if (options.fddir ?? true) pairs.push({ name: 'fddir', type: NvType.descriptor, value: 0n })
  return encodeNvlist(pairs)
}

function structRequest(op: number, path: string): Buffer {
  const bytes = Buffer.alloc(104)
  bytes.writeUInt32LE(op, 0)
  bytes.write(path, 4)
  return bytes
}

// ---- connections ----------------------------------------------------------------------------------------

interface Sent {
  bytes: Buffer
  directory?: number | undefined
  /** One byte without a descriptor, where the descriptor's would be. */
  bareByte?: boolean
}

class Conversation {
  readonly received: Buffer[] = []
  ended = false
  readonly end: Promise<Buffer>
  readonly #socket: Socket

  constructor(path: string, { bytes, directory, bareByte }: Sent, shutdown = true) {
    const descriptor = ok(native.connectStream(path), 'connect')
    if (bytes.length > 0) sent(native.send(descriptor, bytes, 0))
    if (directory !== undefined) sent(native.sendDescriptor(descriptor, directory))
    if (bareByte === true) sent(native.send(descriptor, Buffer.alloc(1), 0))
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
    // A reset is an end like any other.
    this.#socket.on('error', () => undefined)
    await new Promise((closed) => this.#socket.once('close', closed))
    this.ended = true
    return Buffer.concat(this.received)
  }
}

/** A VM that refuses early may have closed before everything was sent. */
function sent(result: number | { errno: number; syscall: string }): void {
  if (!isFailure(result) || result.errno === constants.errno.EPIPE) return
  throw new Error(`${result.syscall}: errno ${String(result.errno)}`)
}

function ok<T>(result: T, what: string): Exclude<T, { errno: number }> {
  if (isFailure(result)) throw new Error(`${what}: errno ${String(result.errno)}`)
  return result as Exclude<T, { errno: number }>
}

function ask(vm: { socketPath: string }, sent: Sent): Promise<Buffer> {
  return new Conversation(vm.socketPath, sent).end
}

async function until(condition: () => boolean, what: string): Promise<void> {
  for (const deadline = Date.now() + 20_000; !condition();) {
    if (Date.now() > deadline) throw new Error(`never happened: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 2))
  }
}

function isAlive(pid: number): boolean {
  const status = native.processStatus(pid)
  return !isFailure(status) && status.state !== 'zombie'
}

// ---- VMs and folders ------------------------------------------------------------------------------------

const mebibyte = 1024 * 1024
const memoryBytes = 4 * mebibyte

async function startVm(test: TestContext, options: Partial<SimulatorOptions> = {}): Promise<SimulatedBhyve> {
  const vm = await SimulatedBhyve.start({ vm: 'vm0', memoryBytes, ...options })
  test.teardown(() => vm.stop())
  return vm
}

class Folder {
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

  /** -1 where there is no such file. */
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

function set(name: string): string[] {
  return [name, `${name}.kern`, `${name}.meta`]
}

// ---- nvlist ---------------------------------------------------------------------------------------------

t.test('nvlists: what upstream packs is decoded and packed again to the same bytes', async (t) => {
  for (const request of golden.requests.filter(({ dialect }) => dialect !== 'struct')) {
    const payload = payloadOf(request)
    const pairs = decodeNvlist(payload, request.fds)
    t.ok(pairs, request.description)
    t.same(encodeNvlist(pairs ?? []), payload, request.description)
    t.equal(pairs?.find(({ name }) => name === 'filename')?.value, request.filename)
  }
  t.same(encodeNvlist([]), goldenSuccess)
  const error = { name: 'error', type: NvType.string, value: "command 'ping' not found" }
  t.same(encodeNvlist([error]), goldenUnknownCommand)
})

t.test('nvlists: every type survives packing and decoding', async (t) => {
  const inner: NvPair[] = [
    { name: 'flag', type: NvType.bool, value: true },
    {
      name: 'deeper',
      type: NvType.nvlist,
      value: [{ name: 'n', type: NvType.number, value: 2n ** 64n - 1n }],
    },
  ]
  const pairs: NvPair[] = [
    { name: 'nothing', type: NvType.null, value: null },
    { name: 'number', type: NvType.number, value: 7n },
    { name: 'text', type: NvType.string, value: 'снимок' },
    { name: 'list', type: NvType.nvlist, value: inner },
    { name: 'empty list', type: NvType.nvlist, value: [] },
    { name: 'directory', type: NvType.descriptor, value: 1n },
    { name: 'bytes', type: NvType.binary, value: Buffer.from([0, 1, 2]) },
    { name: 'flags', type: NvType.boolArray, value: [true, false] },
    { name: 'numbers', type: NvType.numberArray, value: [1n, 2n] },
    { name: 'texts', type: NvType.stringArray, value: ['', 'a', 'b c'] },
    { name: 'lists', type: NvType.nvlistArray, value: [inner, [], inner] },
    { name: 'descriptors', type: NvType.descriptorArray, value: [0n, 1n] },
    { name: 'last', type: NvType.bool, value: false },
  ]
  t.same(decodeNvlist(encodeNvlist(pairs), 3), pairs)
})

t.test('nvlists: libnv accepts these', async (t) => {
  const big = Buffer.alloc(19 + 19 + 2 + 8)
  big.set([0x6c, 0, 0x80])
  big.writeBigUInt64BE(29n, 11)
  big.set([NvType.number, 0, 2], 19)
  big.writeBigUInt64BE(8n, 22)
  big.write('n', 38)
  big.writeBigUInt64BE(5n, 40)
  t.same(decodeNvlist(big, 0), [{ name: 'n', type: NvType.number, value: 5n }], 'big-endian')
  big.set([NvType.numberArray], 19)
  big.writeBigUInt64BE(1n, 30)
  t.same(decodeNvlist(big, 0)?.[0]?.value, [5n], 'big-endian array')

  const scalarItems = message([pair(NvType.bool, 'b', Buffer.from([1]), { items: 9n })])
  t.ok(decodeNvlist(scalarItems, 1), 'items of a scalar')
  t.ok(decodeNvlist(message([fddir], { descriptors: 1n }), 3), 'fewer descriptors announced than came')

  const child = message([pair(NvType.bool, 'b', Buffer.from([1]))])
  t.same(
    decodeNvlist(message([pair(NvType.nvlist, 'l', child)]), 1)?.[0]?.value,
    [{ name: 'b', type: NvType.bool, value: true }],
    'a nested list that is not closed',
  )
  const twins = message([suspend, suspend], { flags: 0x02 })
  t.ok(decodeNvlist(message([pair(NvType.nvlist, 'l', twins)]), 1), 'twins in a nested list that allows them')
})

interface Rejection {
  why: string
  bytes: Buffer
  descriptors?: number
}

const longName = Buffer.concat([Buffer.alloc(2048, 'n'), Buffer.alloc(1)])
const rejectedNvlists: Rejection[] = [
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
    why: 'nested list of no size',
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
    why: 'list array of more items than could fit',
    bytes: message([...goodPairs, pair(NvType.nvlistArray, 'a', message([]), { items: 2n ** 40n })]),
  },
  {
    why: 'descriptor array with a bad index',
    bytes: message([...goodPairs, pair(NvType.descriptorArray, 'a', u64(1n), { items: 1n })]),
  },
]

t.test('nvlists: libnv rejects these', async (t) => {
  t.ok(decodeNvlist(message(goodPairs), 1), 'the one they are made from is good')
  for (const { why, bytes } of rejectedNvlists) t.equal(decodeNvlist(bytes, 1), undefined, why)
  t.equal(decodeNvlist(message(goodPairs, { size: 1n }), 1), undefined, 'size too small')
  t.equal(decodeNvlist(message(goodPairs, { size: 10_000n }), 1), undefined, 'size too large')
  t.equal(decodeNvlist(message(goodPairs, { descriptors: 2n }), 1), undefined, 'more descriptors than came')
  const good = message(goodPairs)
  for (let length = 0; length < good.length; length++) {
    if (decodeNvlist(good.subarray(0, length), 1) !== undefined) t.fail(`cut to ${String(length)} bytes`)
  }
})

// ---- metadata and RAM -----------------------------------------------------------------------------------

interface GoldenMetadata {
  'basic metadata': { ncpus: number; vmname: string; memsize: number; memflags: number }
  kern_structs?: { device: string; size: number; file_offset: number }[]
  structs?: { debug_name: string; size: number; file_offset: number }[]
  devices: { device?: string; snapshot_req?: string; size: number; file_offset: number }[]
}

function writeMetadata(shape: MetadataShape, data: GoldenMetadata): MetadataWriter {
  const writer = new MetadataWriter(shape)
  const { ncpus, vmname, memsize, memflags } = data['basic metadata']
  writer.basic({ cpus: ncpus, vm: vmname, memoryBytes: memsize, memoryFlags: memflags })
  writer.openStructures()
  const structures = [
    ...(data.kern_structs ?? []).map((entry) => ({ ...entry, name: entry.device })),
    ...(data.structs ?? []).map((entry) => ({ ...entry, name: entry.debug_name })),
  ]
  for (const { name, size, file_offset } of structures) writer.structure({ name, size, offset: file_offset })
  return writer
}

t.test('metadata: the golden bytes from the golden numbers', async (t) => {
  const shapes = { descriptor: 'current', path: 'old' } as const
  for (const [file, shape] of Object.entries(shapes)) {
    const text = readFileSync(join(goldenFolder, 'meta', `${file}.meta`), 'utf8')
    const data = JSON.parse(text) as GoldenMetadata
    const writer = writeMetadata(shape, data)
    writer.closeList()
    writer.openDevices()
    for (const { device, snapshot_req, size, file_offset } of data.devices) {
      writer.device({ name: device ?? snapshot_req ?? '', size, offset: file_offset })
    }
    writer.closeList()
    writer.finish()
    t.equal(writer.text, text, file)
  }
  const path = readFileSync(join(goldenFolder, 'meta', 'path.meta'), 'utf8')
  const { structs } = JSON.parse(writeMetadata('oldest', JSON.parse(path) as GoldenMetadata).text + ']}') as {
    structs: { debug_name: string; snapshot_req: number }[]
  }
  t.same(
    structs.map(({ debug_name, snapshot_req }) => [debug_name, snapshot_req]),
    [
      ...[
        ['vhpet', 5],
        ['vm', 2],
        ['vmx', 0],
        ['vioapic', 1],
        ['vlapic', 3],
        ['vmcx', 6],
      ],
      ...[
        ['vatpit', 9],
        ['vatpic', 8],
        ['vpmtmr', 10],
        ['vrtc', 11],
      ],
    ],
    "FreeBSD 13.0's numbers",
  )
  const failed = readFileSync(join(goldenFolder, 'meta', 'failed-at-kernel-structure.meta'), 'utf8')
  const data = JSON.parse(`${failed}],"devices":[]}`) as GoldenMetadata
  t.equal(writeMetadata('current', data).text, failed, 'failed run')
  t.equal(new MetadataWriter('current').text, '', 'nothing said, nothing written')
})

t.test('RAM: the asked fraction is zero, the rest does not compress, and it stays the same', async (t) => {
  const pages = (memoryBytes + 4096) / 4096
  const ram = (zeroFraction: number, zeroLayout: 'runs' | 'pages' = 'runs') => {
    return { memoryBytes, zeroFraction, zeroLayout }
  }
  for (const fraction of [0, 0.25, 0.5, 0.9, 1]) {
    const memory = new SyntheticMemory('vm0', { ...ram(fraction), memoryBytes: memoryBytes + 4096 })
    const whole = Buffer.from(memory.read(0, memory.size))
    const zeros = Array.from({ length: pages }, (_, page) => whole.subarray(page * 4096, (page + 1) * 4096))
    t.equal(zeros.filter((page) => page.every((byte) => byte === 0)).length, Math.floor(pages * fraction))
    const slices = [0, 1, 2].map((i) => Buffer.from(memory.read(i * mebibyte, mebibyte)))
    t.ok(Buffer.concat(slices).equals(whole.subarray(0, 3 * mebibyte)), 'slices are parts of the whole')
  }
  const dense = new SyntheticMemory('vm0', ram(0)).read(0, memoryBytes)
  t.ok(deflateRawSync(dense).length > memoryBytes * 0.99, 'incompressible')
  const other = new SyntheticMemory('vm1', ram(0)).read(0, memoryBytes)
  const page = (bytes: Buffer, index: number) =>
    bytes.subarray(index * 4096, (index + 1) * 4096).toString('base64')
  const all = [dense, other].flatMap((bytes) =>
    Array.from({ length: memoryBytes / 4096 }, (_, i) => page(bytes, i)),
  )
  t.equal(new Set(all).size, all.length, 'no page of any VM is like another')
  const runs = new SyntheticMemory('vm0', ram(0.5)).read(0, mebibyte)
  t.ok(
    runs.subarray(mebibyte / 2).every((byte) => byte === 0),
    'zeros are in runs',
  )
  const alternating = new SyntheticMemory('vm0', ram(0.5, 'pages')).read(0, 4 * 4096)
  const isZero = [0, 1, 2, 3].map((i) =>
    alternating.subarray(i * 4096, (i + 1) * 4096).every((byte) => byte === 0),
  )
  t.strictSame(isZero, [false, true, false, true], 'or single pages')
})

// ---- golden requests on the socket ----------------------------------------------------------------------

t.test('dialects descriptor and reply serve the golden requests', async (t) => {
  for (const dialect of ['descriptor', 'reply'] as const) {
    const folder = new Folder(t)
    const vm = await startVm(t, { dialect, vm: 'ubuntu', memoryBytes: 4 * mebibyte })
    t.equal(vm.socketPath, join(vm.runDirectory, 'ubuntu'))
    const expected = dialect === 'reply' ? goldenSuccess : Buffer.alloc(0)
    const requests = golden.requests.filter((request) => request.dialect === 'descriptor' && !request.suspend)
    for (const request of requests) {
      const answer = await ask(vm, { bytes: payloadOf(request), directory: folder.descriptor })
      t.same(answer, expected, request.description)
      t.ok(folder.isComplete(request.filename), request.description)
    }
    t.equal(folder.names.length, 3 * new Set(requests.map((request) => request.filename)).size)
    t.ok(folder.bytes('x1').equals(folder.bytes('a')), 'the same RAM every time')
    t.same(folder.bytes('x1.meta'), readFileSync(join(goldenFolder, 'meta', 'descriptor.meta')))
    t.equal(folder.size('x1.kern'), 24472)
    for (const name of set('x1')) {
      t.equal(statSync(join(folder.path, name)).mode & 0o777, 0o700 & ~umask, name)
    }
    t.same(readdirSync(join(dirname(vm.runDirectory), 'cwd')), [], 'nothing strayed')
    const last = golden.requests.find((request) => request.dialect === 'descriptor' && request.suspend)
    if (last === undefined) throw new Error('no golden suspend')
    t.same(await ask(vm, { bytes: payloadOf(last), directory: folder.descriptor }), Buffer.alloc(0))
    t.same(await vm.exited, { code: 5, signal: null })
    t.ok(existsSync(vm.socketPath), 'the socket file stays')
    t.ok(folder.isComplete(last.filename))
  }
})

/** The golden path, replaced by one of the same length beside the simulator's working directory. */
const goldenPath = '/var/vm/snap1'
const relativePath = '../outside/x1'

t.test('dialects path and struct serve the golden requests', async (t) => {
  for (const dialect of ['path', 'struct'] as const) {
    const vm = await startVm(t, { dialect, suspendExitCode: 0 })
    const outside = join(dirname(vm.runDirectory), 'outside')
    if (dialect === 'struct') t.equal(vm.socketPath, join(vm.runDirectory, 'checkpoint', 'vm0'))
    mkdirSync(outside)
    for (const request of golden.requests.filter((request) => request.dialect === dialect)) {
      const bytes = payloadOf(request)
      bytes.write(relativePath, bytes.indexOf(goldenPath))
      rmSync(join(outside, 'x1'), { force: true })
      t.same(await ask(vm, { bytes }), Buffer.alloc(0))
      t.same(readdirSync(outside).sort(), set('x1'), request.description)
      t.equal(statSync(join(outside, 'x1')).size, memoryBytes)
      t.equal(statSync(join(outside, 'x1.meta')).mode & 0o777, 0o666 & ~umask, 'fopen()')
      const metadata = JSON.parse(readFileSync(join(outside, 'x1.meta'), 'utf8')) as GoldenMetadata
      t.equal(metadata.structs?.length, 10)
      t.same(
        metadata.devices.filter(({ size }) => size > 0).map(({ snapshot_req }) => snapshot_req),
        ['atkbdc', 'virtio-net', 'virtio-blk', 'lpc', 'ahci-cd'],
      )
      const total = [...(metadata.structs ?? []), ...metadata.devices].reduce(
        (sum, { size }) => sum + size,
        0,
      )
      t.equal(statSync(join(outside, 'x1.kern')).size, total)
      if (request.suspend) t.same(await vm.exited, { code: 0, signal: null })
    }
  }
})

t.test('a descriptor request to a path bhyve strays into its working directory', async (t) => {
  const folder = new Folder(t)
  const vm = await startVm(t, { dialect: 'path' })
  await ask(vm, { bytes: nvlistRequest('stray'), directory: folder.descriptor })
  t.same(folder.names, [])
  t.same(readdirSync(join(dirname(vm.runDirectory), 'cwd')).sort(), set('stray'))
})

t.test('a path request to a descriptor bhyve is refused at once', async (t) => {
  const folder = new Folder(t)
  const vm = await startVm(t)
  const path = join(folder.path, 'x')
  t.same(await ask(vm, { bytes: nvlistRequest(path, { fddir: false }) }), Buffer.alloc(0))
  t.same(folder.names, [])
})

t.test('symlinks are followed, and what is there is emptied first', async (t) => {
  const folder = new Folder(t)
  const elsewhere = new Folder(t)
  symlinkSync(join(elsewhere.path, 'target'), join(folder.path, 'x'))
  writeFileSync(join(folder.path, 'x.kern'), Buffer.alloc(mebibyte))
  const vm = await startVm(t)
  await ask(vm, { bytes: nvlistRequest('x'), directory: folder.descriptor })
  t.same(elsewhere.names, ['target'])
  t.ok(folder.isComplete('x'))
  t.equal(folder.size('x.kern'), 24472)
})

// ---- rejections -----------------------------------------------------------------------------------------

function rejectionsOf(folder: Folder): (Sent & { why: string })[] {
  const directory = folder.descriptor
  const good = message(goodPairs)
  const fields: [string, Buffer[]][] = [
    ['no filename', [cmd, suspend, fddir]],
    ['filename is a number', [cmd, suspend, fddir, pair(NvType.number, 'filename', u64(1n))]],
    ['no suspend', [cmd, filename, fddir]],
    ['suspend is a number', [cmd, filename, fddir, pair(NvType.number, 'suspend', u64(0n))]],
    ['no fddir', [cmd, filename, suspend]],
    ['fddir is a number', [cmd, filename, suspend, pair(NvType.number, 'fddir', u64(0n))]],
    ['another command', [pair(NvType.string, 'cmd', Buffer.from('pci_add\0')), filename, suspend, fddir]],
    [
      'name too long',
      [cmd, suspend, fddir, pair(NvType.string, 'filename', Buffer.from(`${'n'.repeat(251)}\0`))],
    ],
  ]
  return [
    ...rejectedNvlists.map(({ why, bytes }) => ({ why, bytes, directory })),
    ...fields.map(([why, pairs]) => ({ why, bytes: message(pairs), directory })),
    { why: 'size too small', bytes: message(goodPairs, { size: 20n }), directory },
    { why: 'size too large', bytes: message(goodPairs, { size: 10_000n }), directory },
    { why: 'size beyond all bounds', bytes: message(goodPairs, { size: 2n ** 63n }), directory },
    { why: 'too many descriptors announced', bytes: message(goodPairs, { descriptors: 2n }), directory },
    {
      why: 'descriptors beyond all bounds',
      bytes: message(goodPairs, { descriptors: 2n ** 63n }),
      directory,
    },
    { why: 'no descriptor at all', bytes: good },
    { why: 'a byte without a descriptor', bytes: good, bareByte: true },
    { why: 'no descriptor announced', bytes: message(goodPairs, { descriptors: 0n }), directory },
    { why: 'nothing', bytes: Buffer.alloc(0) },
    { why: 'half a header', bytes: good.subarray(0, 10) },
    { why: 'a header', bytes: good.subarray(0, 19) },
    { why: 'half a payload', bytes: good.subarray(0, 60) },
    { why: 'no nvlist', bytes: Buffer.from('GET / HTTP/1.1\r\nHost: bhyve\r\n\r\n') },
  ]
}

t.test('whatever libnv or bhyve rejects leaves nothing, and the next request is served', async (t) => {
  for (const dialect of ['descriptor', 'reply'] as const) {
    const folder = new Folder(t)
    const vm = await startVm(t, { dialect, memoryBytes: 4096 })
    for (const rejection of rejectionsOf(folder)) {
      await ask(vm, rejection)
      t.same(folder.names, [], `${dialect}: ${rejection.why}`)
    }
    await ask(vm, { bytes: message(goodPairs), directory: folder.descriptor })
    t.ok(folder.isComplete('good', 4096), `${dialect}: still serving`)
  }
})

t.test('a request without a command is refused where bhyve does not answer', async (t) => {
  const folder = new Folder(t)
  const vm = await startVm(t)
  const bytes = message([filename, suspend, fddir])
  t.same(await ask(vm, { bytes, directory: folder.descriptor }), Buffer.alloc(0))
  t.same(folder.names, [])
  t.ok(isAlive(vm.pid))
})

t.test('a descriptor sent with the payload is lost: the one after it is awaited', async (t) => {
  const folder = new Folder(t)
  const vm = await startVm(t)
  const bytes = message(goodPairs)
  const socket = ok(native.connectStream(vm.socketPath), 'connect')
  t.teardown(() => {
    native.close(socket)
  })
  ok(native.send(socket, bytes.subarray(0, 1), 0), 'send')
  // The version, a zero byte, carries it: inside the header.
  ok(native.sendDescriptor(socket, folder.descriptor), 'sendDescriptor')
  ok(native.send(socket, bytes.subarray(2), 0), 'send')
  const queued = new Conversation(vm.socketPath, {
    bytes: nvlistRequest('queued'),
    directory: folder.descriptor,
  })
  t.same(native.simulator.poll([socket], 100), [], 'not refused yet, everybody waits')
  t.same(folder.names, [])
  native.shutdownWrite(socket)
  await queued.end
  t.same(folder.names, set('queued'))
})

t.test(
  'descriptors: any place among them, and a file or a read-only folder is no directory to write',
  async (t) => {
    const folder = new Folder(t)
    writeFileSync(join(folder.path, 'file'), '')
    const file = openSync(join(folder.path, 'file'), 'r')
    t.teardown(() => {
      closeSync(file)
    })
    const vm = await startVm(t)
    await ask(vm, { bytes: message(goodPairs), directory: file })
    t.same(folder.names, ['file'], 'a file')
    await ask(vm, { bytes: nvlistRequest('a/b'), directory: folder.descriptor })
    await ask(vm, { bytes: nvlistRequest('/a'), directory: folder.descriptor })
    t.same(folder.names, ['file'], 'no path')
    if (process.getuid?.() !== 0) {
      chmodSync(folder.path, 0o500)
      await ask(vm, { bytes: message(goodPairs), directory: folder.descriptor })
      t.same(folder.names, ['file'], 'not writable')
      chmodSync(folder.path, 0o700)
    }
    mkdirSync(join(folder.path, 'good'))
    await ask(vm, { bytes: message(goodPairs), directory: folder.descriptor })
    t.same(folder.names, ['file', 'good', 'good.kern'], 'RAM cannot be opened')
    t.equal(folder.size('good.kern'), 0)
  },
)

t.test('descriptors: as many as announced, neither more nor cut off', async (t) => {
  const receive = (announced: bigint, came: { descriptors: number[]; truncated: boolean }) => {
    let left = message(goodPairs, { descriptors: announced })
    const calls = {
      receive(_socket: number, length: number): Buffer {
        const bytes = left.subarray(0, length)
        left = left.subarray(length)
        return bytes
      },
      receiveDescriptors: () => ({ bytes: 1, ...came }),
    }
    const scripted = { ...native, simulator: { ...native.simulator, ...calls } }
    const state = newRequestState()
    const { value } = receiveRequest(scripted, -1, 'descriptor', state, false).next()
    t.same(state.descriptors, came.descriptors, 'all are held, so all will be closed')
    return typeof value === 'object' && 'kind' in value ? value.kind : value
  }
  t.equal(receive(1n, { descriptors: [7], truncated: false }), 'checkpoint')
  t.equal(receive(2n, { descriptors: [7, 8], truncated: false }), 'checkpoint', 'one too many, but announced')
  t.equal(receive(1n, { descriptors: [7, 8], truncated: false }), 'failed')
  t.equal(receive(1n, { descriptors: [7], truncated: true }), 'failed')
  t.equal(receive(2n, { descriptors: [7], truncated: false }), 'failed')
  t.equal(receive(1n, { descriptors: [], truncated: false }), 'failed')
})

const descriptorFolder = (pid: number) => `/proc/${String(pid)}/fd`

t.test('no descriptor is leaked', { skip: !existsSync(descriptorFolder(process.pid)) }, async (t) => {
  const folder = new Folder(t)
  const vm = await startVm(t, { memoryBytes: 4096 })
  const bad = { bytes: message([cmd, filename, fddir]), directory: folder.descriptor }
  const good = { bytes: message(goodPairs), directory: folder.descriptor }
  await ask(vm, good)
  // The socket is closed a moment after the client sees its end.
  const count = () => readdirSync(descriptorFolder(vm.pid)).length
  await ask(vm, bad)
  const before = count()
  for (let i = 0; i < 20; i++) await ask(vm, i % 2 === 0 ? good : bad)
  await until(() => count() <= before, 'as many as before')
})

t.test('paths longer than their dialect allows leave nothing', async (t) => {
  const folder = new Folder(t)
  const limits = { path: 250, struct: 95 } as const
  for (const [dialect, limit] of Object.entries(limits) as ['path' | 'struct', number][]) {
    const vm = await startVm(t, { dialect })
    const request = (length: number) => {
      const path = `${folder.path}/${dialect}${'/'.repeat(length)}`.slice(0, length - 1)
      return dialect === 'path' ? nvlistRequest(`${path}x`, { fddir: false }) : structRequest(0, `${path}x`)
    }
    mkdirSync(join(folder.path, dialect))
    await ask(vm, { bytes: request(limit + 1) })
    t.same(readdirSync(join(folder.path, dialect)), [], dialect)
    await ask(vm, { bytes: request(limit) })
    t.same(readdirSync(join(folder.path, dialect)).sort(), set('x'), dialect)
  }
})

// ---- struct ---------------------------------------------------------------------------------------------

t.test('struct: leaving early executes the previous request again', async (t) => {
  const folder = new Folder(t)
  const vm = await startVm(t, { dialect: 'struct' })
  await ask(vm, { bytes: Buffer.alloc(0) })
  t.same(folder.names, [], 'there is none before the first')
  await ask(vm, { bytes: structRequest(0, join(folder.path, 'x')) })
  for (const name of set('x')) rmSync(join(folder.path, name))
  await ask(vm, { bytes: Buffer.alloc(0) })
  t.ok(folder.isComplete('x'), 'the trap')
  for (const name of set('x')) rmSync(join(folder.path, name))
  await ask(vm, { bytes: structRequest(0xffffffff, join(folder.path, 'y')) })
  t.same(folder.names, [], 'an operation of no meaning is the way out')
  const op = Buffer.alloc(4)
  await ask(vm, { bytes: op })
  t.same(folder.names, set('y'), 'a part of a request goes on top of the one before')
})

// ---- replies --------------------------------------------------------------------------------------------

function errorIn(answer: Buffer): unknown {
  return decodeNvlist(answer, 0)?.find(({ name }) => name === 'error')?.value
}

t.test('reply: answers once the work is done, in words where it refused', async (t) => {
  const folder = new Folder(t)
  const vm = await startVm(t, { dialect: 'reply' })
  const directory = folder.descriptor
  const ping = message([pair(NvType.string, 'cmd', Buffer.from('ping\0'))], { descriptors: 0n })
  t.same(await ask(vm, { bytes: ping }), goldenUnknownCommand)
  t.type(errorIn(await ask(vm, { bytes: message([cmd, filename, fddir]), directory })), 'string')
  t.same(await ask(vm, { bytes: Buffer.from('no nvlist, and longer than a header') }), Buffer.alloc(0))
  t.same(folder.names, [])
  mkdirSync(join(folder.path, 'good.meta'))
  t.same(
    await ask(vm, { bytes: message(goodPairs), directory }),
    goldenSuccess,
    'a lost .meta is called success',
  )
})

t.test('reply: a request without a command aborts bhyve', async (t) => {
  const vm = await startVm(t, { dialect: 'reply' })
  await ask(vm, { bytes: message([pair(NvType.number, 'cmd', u64(1n))], { descriptors: 0n }) })
  t.same(await vm.exited, { code: null, signal: 'SIGABRT' })
})

t.test('reply: a client that leaves before the answer kills the VM', async (t) => {
  const folder = new Folder(t)
  const vm = await startVm(t, { dialect: 'reply' })
  new Conversation(vm.socketPath, { bytes: message(goodPairs), directory: folder.descriptor }).close()
  t.same(await vm.exited, { code: null, signal: 'SIGPIPE' })
  t.ok(folder.isComplete('good'), 'after the files were complete')
})

t.test('descriptor: a client that leaves early does no harm', async (t) => {
  const folder = new Folder(t)
  const vm = await startVm(t)
  new Conversation(vm.socketPath, { bytes: message(goodPairs), directory: folder.descriptor }).close()
  await ask(vm, { bytes: nvlistRequest('next'), directory: folder.descriptor })
  t.ok(folder.isComplete('good'))
  t.ok(folder.isComplete('next'))
})

// ---- faults ---------------------------------------------------------------------------------------------

type Fault = NonNullable<SimulatorOptions['fault']>
type Size = 'absent' | 'empty' | 'partial' | 'full'

interface FaultCase {
  fault: Fault
  /** RAM, `.kern`, `.meta`. */
  left: readonly [Size, Size, Size]
}

const kernelSize = 24472
const metadataSize = readFileSync(join(goldenFolder, 'meta', 'descriptor.meta')).length

/** Section 4 of docs/protocol.md. */
const failures: FaultCase[] = [
  { fault: { at: 'open', kind: 'fail' }, left: ['absent', 'empty', 'absent'] },
  { fault: { at: 'open', kind: 'no-space' }, left: ['absent', 'empty', 'absent'] },
  { fault: { at: 'pause', kind: 'fail' }, left: ['empty', 'empty', 'empty'] },
  { fault: { at: 'memory', kind: 'fail' }, left: ['partial', 'empty', 'empty'] },
  { fault: { at: 'memory', kind: 'no-space' }, left: ['partial', 'empty', 'empty'] },
  { fault: { at: 'kernel', kind: 'fail' }, left: ['full', 'partial', 'partial'] },
  { fault: { at: 'kernel', kind: 'no-space' }, left: ['full', 'partial', 'partial'] },
  { fault: { at: 'device', kind: 'fail' }, left: ['full', 'partial', 'partial'] },
  { fault: { at: 'metadata', kind: 'fail' }, left: ['full', 'full', 'empty'] },
  { fault: { at: 'metadata', kind: 'no-space' }, left: ['full', 'full', 'partial'] },
]

/** A bhyve that dies, or stops, has not flushed its metadata. */
const interruptions: { at: Fault['at']; left: FaultCase['left'] }[] = [
  { at: 'open', left: ['absent', 'empty', 'absent'] },
  { at: 'pause', left: ['empty', 'empty', 'empty'] },
  { at: 'memory', left: ['partial', 'empty', 'empty'] },
  { at: 'kernel', left: ['full', 'partial', 'empty'] },
  { at: 'device', left: ['full', 'partial', 'empty'] },
  { at: 'metadata', left: ['full', 'full', 'empty'] },
  { at: 'reply', left: ['full', 'full', 'full'] },
  { at: 'receive', left: ['absent', 'absent', 'absent'] },
  { at: 'accept', left: ['absent', 'absent', 'absent'] },
]

function leftOf(folder: Folder, name: string): [Size, Size, Size] {
  const judge = (size: number, whole: number): Size =>
    size < 0 ? 'absent' : size === 0 ? 'empty' : size < whole ? 'partial' : 'full'
  return [
    judge(folder.size(name), memoryBytes),
    judge(folder.size(`${name}.kern`), kernelSize),
    judge(folder.size(`${name}.meta`), metadataSize),
  ]
}

const sameMetadata = { vm: 'ubuntu', memoryBytes } as const

t.test('a failure leaves its files, and the VM runs on', async (t) => {
  for (const { fault, left } of failures) {
    const folder = new Folder(t)
    const vm = await startVm(t, { ...sameMetadata, fault, dialect: 'reply' })
    const what = `${fault.at}/${fault.kind}`
    for (const name of ['first', 'second']) {
      const answer = await ask(vm, { bytes: nvlistRequest(name), directory: folder.descriptor })
      t.same(leftOf(folder, name), left, `${what}: ${name}`)
      if (fault.at === 'metadata') t.same(answer, goldenSuccess, `${what}: called a success`)
      else t.type(errorIn(answer), 'string', what)
    }
    t.ok(isAlive(vm.pid), what)
    const suspension = nvlistRequest('third', { suspend: true })
    await ask(vm, { bytes: suspension, directory: folder.descriptor })
    t.same(leftOf(folder, 'third'), left, `${what}: suspend`)
    if (fault.at === 'metadata') t.same(await vm.exited, { code: 5, signal: null }, `${what}: state lost`)
    else t.ok(isAlive(vm.pid), `${what}: a failed suspend leaves the VM running`)
    await vm.stop()
  }
})

t.test('a failure at a kernel structure writes the golden bytes', async (t) => {
  const folder = new Folder(t)
  const vm = await startVm(t, { vm: 'ubuntu', memoryBytes: mebibyte, fault: { at: 'kernel', kind: 'fail' } })
  await ask(vm, { bytes: nvlistRequest('x'), directory: folder.descriptor })
  const expected = readFileSync(join(goldenFolder, 'meta', 'failed-at-kernel-structure.meta'))
  t.same(folder.bytes('x.meta'), expected)
  t.equal(folder.size('x.kern'), 2424)
})

t.test('a VM killed at a point leaves what was there', async (t) => {
  for (const { at, left } of interruptions) {
    const folder = new Folder(t)
    const vm = await startVm(t, { ...sameMetadata, fault: { at, kind: 'kill' } as Fault })
    await ask(vm, { bytes: nvlistRequest('x'), directory: folder.descriptor })
    t.same(await vm.exited, { code: null, signal: 'SIGKILL' }, at)
    t.same(leftOf(folder, 'x'), left, at)
    await vm.stop()
  }
})

t.test('a VM that hangs keeps the connection, and everybody behind it, waiting', async (t) => {
  for (const { at, left } of interruptions) {
    const folder = new Folder(t)
    const vm = await startVm(t, { ...sameMetadata, fault: { at, kind: 'hang' } as Fault })
    const sent = { bytes: nvlistRequest('x'), directory: folder.descriptor }
    const first = new Conversation(vm.socketPath, sent)
    const second = new Conversation(vm.socketPath, { ...sent, bytes: nvlistRequest('y') })
    await until(() => leftOf(folder, 'x').join() === left.join(), `${at}: its files`)
    const quiet = ok(native.connectStream(vm.socketPath), 'connect')
    t.same(native.simulator.poll([quiet], 50), [], `${at}: served nobody`)
    native.close(quiet)
    t.notOk(first.ended || second.ended, at)
    t.same(leftOf(folder, 'x'), left, at)
    t.equal(folder.size('y.kern'), -1, at)
    await vm.stop()
    await Promise.all([first.end, second.end])
  }
})

t.test('accept/hang: the backlog is all there is', async (t) => {
  const vm = await startVm(t, { fault: { at: 'accept', kind: 'hang' } })
  const sockets: number[] = []
  let refusal = 0
  while (refusal === 0 && sockets.length < 100) {
    const socket = native.connectStream(vm.socketPath)
    if (isFailure(socket)) refusal = socket.errno
    else sockets.push(socket)
  }
  for (const socket of sockets) native.close(socket)
  const full = [constants.errno.EAGAIN, constants.errno.ECONNREFUSED]
  t.ok(full.includes(refusal), 'full')
  t.ok(sockets.length >= 10 && sockets.length <= 16, `about a dozen: ${String(sockets.length)}`)
})

t.test('a connection closed at a point ends for the client only', async (t) => {
  for (const at of ['accept', 'receive', 'reply'] as const) {
    for (const dialect of ['reply', 'descriptor'] as const) {
      const folder = new Folder(t)
      const vm = await startVm(t, { dialect, fault: { at, kind: 'close' } })
      for (const name of ['x', 'y']) {
        const answer = await ask(vm, { bytes: nvlistRequest(name), directory: folder.descriptor })
        t.same(answer, Buffer.alloc(0), at)
        t.equal(folder.isComplete(name), at === 'reply', at)
      }
      t.ok(isAlive(vm.pid), at)
      await vm.stop()
    }
  }
})

t.test('receive faults in struct', async (t) => {
  const folder = new Folder(t)
  const vm = await startVm(t, { dialect: 'struct', fault: { at: 'receive', kind: 'close' } })
  await ask(vm, { bytes: structRequest(0, join(folder.path, 'x')) })
  t.same(folder.names, [])
  t.ok(isAlive(vm.pid))
})

t.test('a FIFO in place wedges the VM', async (t) => {
  const folder = new Folder(t)
  const [code] = (await once(spawn('mkfifo', [join(folder.path, 'x.kern')]), 'exit')) as [number]
  t.equal(code, 0)
  const vm = await startVm(t)
  const wedged = new Conversation(vm.socketPath, { bytes: nvlistRequest('x'), directory: folder.descriptor })
  const queued = new Conversation(vm.socketPath, { bytes: nvlistRequest('y'), directory: folder.descriptor })
  const quiet = ok(native.connectStream(vm.socketPath), 'connect')
  t.same(native.simulator.poll([quiet], 100), [])
  native.close(quiet)
  t.notOk(wedged.ended || queued.ended)
  t.same(folder.names, ['x.kern'])
  await vm.stop()
})

// ---- time and order -------------------------------------------------------------------------------------

t.test('one request at a time, the next one from the backlog', async (t) => {
  const folder = new Folder(t)
  const vm = await startVm(t, { memoryBytes: 2 * mebibyte, writeRate: 8 * mebibyte })
  const started = performance.now()
  const conversations = ['a', 'b', 'c'].map(
    (name) => new Conversation(vm.socketPath, { bytes: nvlistRequest(name), directory: folder.descriptor }),
  )
  await until(() => folder.size('b.kern') >= 0, 'the second request is served')
  t.ok(folder.isComplete('a', 2 * mebibyte), 'only once the first is complete')
  t.equal(folder.size('c.kern'), -1)
  await Promise.all(conversations.map(({ end }) => end))
  t.ok(folder.isComplete('c', 2 * mebibyte))
  t.ok(performance.now() - started >= 700, 'and no faster than asked')
})

t.test('RAM grows while it is copied', async (t) => {
  const folder = new Folder(t)
  const vm = await startVm(t, { memoryBytes: 4 * mebibyte, writeRate: 16 * mebibyte })
  const conversation = new Conversation(vm.socketPath, {
    bytes: nvlistRequest('x'),
    directory: folder.descriptor,
  })
  const sizes = new Set<number>()
  await until(() => {
    sizes.add(folder.size('x'))
    return conversation.ended
  }, 'the end')
  t.ok(sizes.size > 3, `seen in ${String(sizes.size)} sizes`)
})

t.test('whoever is queued behind a suspend gets the end and nothing written', async (t) => {
  const folder = new Folder(t)
  const vm = await startVm(t, { suspendExitCode: 0, writeRate: 64 * mebibyte })
  const directory = folder.descriptor
  const first = new Conversation(vm.socketPath, { bytes: nvlistRequest('x', { suspend: true }), directory })
  const second = new Conversation(vm.socketPath, { bytes: nvlistRequest('y'), directory })
  t.same(await first.end, Buffer.alloc(0))
  t.same(await second.end, Buffer.alloc(0))
  t.same(await vm.exited, { code: 0, signal: null })
  t.same(folder.names, set('x'))
  t.ok(folder.isComplete('x'))
})

t.test('a fleet serves its VMs side by side, and outlives the suspend of one', async (t) => {
  const folder = new Folder(t)
  const vms = Array.from({ length: 200 }, (_, i) => `vm-${String(i)}`)
  const fleet = await SimulatedFleet.start({ vms, memoryBytes: 256 * 1024, writeRate: 512 * 1024 })
  t.teardown(() => fleet.stop())
  t.same(fleet.vms, vms)
  const request = (vm: string, name: string, suspend = false) =>
    new Conversation(join(fleet.runDirectory, vm), {
      bytes: nvlistRequest(name, { suspend }),
      directory: folder.descriptor,
    })
  const started = performance.now()
  const conversations = vms.map((vm) => request(vm, vm))
  await Promise.all(conversations.map(({ end }) => end))
  // One takes half a second: one after the other would take 100.
  t.ok(performance.now() - started < 50_000, 'not one after the other')
  t.ok(vms.every((vm) => folder.isComplete(vm, 256 * 1024)))
  t.notOk(folder.bytes('vm-0').equals(folder.bytes('vm-1')), 'each has its own RAM')

  await request('vm-0', 'suspended', true).end
  t.ok(folder.isComplete('suspended', 256 * 1024))
  const gone = native.connectStream(join(fleet.runDirectory, 'vm-0'))
  t.same(gone, { errno: constants.errno.ECONNREFUSED, syscall: 'connect' }, 'its socket file is stale')
  await request('vm-1', 'later').end
  t.ok(folder.isComplete('later', 256 * 1024))
  t.ok(isAlive(fleet.pid))
})

// ---- the process ----------------------------------------------------------------------------------------

t.test('start: options that make no sense are refused by name', async (t) => {
  const refused: [string, Record<string, unknown>, typeof TypeError | typeof RangeError][] = [
    ['VM name', { vm: '' }, TypeError],
    ["no option 'memory'", { memory: '4G' }, TypeError],
    ['VM name', { vm: '..' }, TypeError],
    ['VM name', { vm: 'a/b' }, TypeError],
    ['VM name', { vm: 'a\0b' }, TypeError],
    ['VM name', { vm: undefined }, TypeError],
    ['dialect', { dialect: 'datagram' }, TypeError],
    ['memoryBytes', { memoryBytes: -4096 }, RangeError],
    ['memoryBytes', { memoryBytes: 5000 }, RangeError],
    ['memoryBytes', { memoryBytes: '16M' }, TypeError],
    ['cpus', { cpus: 0 }, RangeError],
    ['cpus', { cpus: 1.5 }, RangeError],
    ['zeroFraction', { zeroFraction: 1.1 }, RangeError],
    ['zeroFraction', { zeroFraction: NaN }, RangeError],
    ['zeroLayout', { zeroLayout: 'some' }, TypeError],
    ['writeRate', { writeRate: 0 }, RangeError],
    ['writeRate', { writeRate: -1 }, RangeError],
    ['suspendExitCode', { suspendExitCode: 256 }, RangeError],
    ['device', { devices: ['lpc@'] }, TypeError],
    ['devices', { devices: 'lpc' }, TypeError],
    ['runDirectory', { runDirectory: '' }, TypeError],
    ['fault.at', { fault: { at: 'lunch', kind: 'fail' } }, TypeError],
    ['fault.kind', { fault: { at: 'accept', kind: 'fail' } }, TypeError],
    ['fault.kind', { fault: { at: 'memory', kind: 'close' } }, TypeError],
  ]
  for (const [name, options, kind] of refused) {
    const start = SimulatedBhyve.start({ vm: 'vm0', ...options })
    await t.rejects(start, new kind(), JSON.stringify(options))
    await t.rejects(start, { message: new RegExp(name) })
  }
  await t.rejects(SimulatedFleet.start({ vms: [] }), new RangeError())
  await t.rejects(SimulatedFleet.start({ vms: ['a', 'a'] }), new RangeError())
})

t.test('start: options that are undefined are the defaults', async (t) => {
  const folder = new Folder(t)
  const vm = await SimulatedBhyve.start({
    vm: 'vm0',
    runDirectory: undefined,
    dialect: undefined,
    memoryBytes: undefined,
    cpus: undefined,
    devices: undefined,
    zeroFraction: undefined,
    writeRate: undefined,
    suspendExitCode: undefined,
    fault: undefined,
  })
  t.teardown(() => vm.stop())
  await ask(vm, { bytes: nvlistRequest('x'), directory: folder.descriptor })
  t.ok(folder.isComplete('x', 16 * mebibyte))
})

t.test('a run directory of the caller: live sockets are spared, stale ones replaced', async (t) => {
  for (const dialect of ['descriptor', 'struct'] as const) {
    const folder = new Folder(t)
    const options = { vm: 'vm0', runDirectory: folder.path, dialect, memoryBytes }
    const vm = await startVm(t, options)
    await t.rejects(SimulatedBhyve.start(options), { message: /vm0 belongs to a VM that is running/ })
    t.ok(isAlive(vm.pid))
    await vm.stop()
    t.ok(existsSync(vm.socketPath), 'left behind, as bhyve leaves it')
    const again = await startVm(t, options)
    await ask(again, { bytes: dialect === 'struct' ? structRequest(9, '') : Buffer.alloc(0) })
    await again.stop()
    rmSync(vm.socketPath)
    writeFileSync(vm.socketPath, '')
    await t.rejects(SimulatedBhyve.start(options), { message: /is no socket/ })
    t.equal(readFileSync(vm.socketPath, 'utf8'), '', 'not touched')
  }
  const folder = new Folder(t)
  const long = { vm: 'v'.repeat(200), runDirectory: folder.path }
  await t.rejects(SimulatedBhyve.start(long), { message: /too long for a socket/ })
})

t.test('a live socket of another program is spared', async (t) => {
  const folder = new Folder(t)
  const server = createServer().listen(join(folder.path, 'vm0'))
  await once(server, 'listening')
  await t.rejects(SimulatedBhyve.start({ vm: 'vm0', runDirectory: folder.path }))
  server.close()
})

t.test('stop: idempotent, and nothing is left', async (t) => {
  const vm = await startVm(t)
  t.equal(statSync(dirname(vm.runDirectory)).mode & 0o777, 0o700, 'private')
  await Promise.all([vm.stop(), vm.stop(), vm[Symbol.asyncDispose]()])
  await vm.stop()
  t.same(await vm.exited, { code: null, signal: 'SIGKILL' })
  t.notOk(isAlive(vm.pid))
  t.notOk(existsSync(dirname(vm.runDirectory)))
})

/** Runs a program of ours that starts a VM and prints its pid and run directory. */
function runProgram(afterwards: string): {
  child: ReturnType<typeof spawn>
  line: Promise<[number, string]>
} {
  const source = `
    import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
    const vm = await SimulatedBhyve.start({ vm: 'vm0', memoryBytes: 4096 })
    console.log(JSON.stringify([vm.pid, vm.runDirectory]))
    ${afterwards}`
  const child = spawn(process.execPath, ['--input-type=module', '--eval', source], {
    cwd: fileURLToPath(new URL('../..', import.meta.url)),
    env: { ...process.env, NODE_OPTIONS: undefined },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const line = once(child.stdout, 'data').then(([bytes]) => JSON.parse(String(bytes)) as [number, string])
  return { child, line }
}

t.test('a VM ends with its parent, however that ends', async (t) => {
  const endings = { 'runs off its end': '', 'is killed': 'setInterval(() => {}, 1000)' }
  for (const [ending, afterwards] of Object.entries(endings)) {
    const { child, line } = runProgram(afterwards)
    const exit = once(child, 'exit')
    const [pid, runDirectory] = await line
    if (afterwards !== '') child.kill('SIGKILL')
    t.same(await exit, afterwards === '' ? [0, null] : [null, 'SIGKILL'], `the parent ${ending}`)
    await until(() => !isAlive(pid), 'the VM ends')
    await until(() => !existsSync(dirname(runDirectory)), 'its folder is removed')
  }
})

t.test('waiting for the exit keeps a program alive that waits for nothing else', async (t) => {
  const { child, line } = runProgram(`process.kill(vm.pid, 'SIGKILL'); await vm.exited; await vm.stop()`)
  const exit = once(child, 'exit')
  await line
  t.same(await exit, [0, null])
})
