/** The bytes on the wire: the requests of upstream's client and the replies of upstream's server. */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import t from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { PeerMemory } from '../../dist/bhyve/peer_memory.js'
import { sendRequest } from '../../dist/bhyve/request.js'
import { Cancellation } from '../../dist/base/cancellation.js'
import { isFailure } from '../../dist/base/native.js'
import type { Dialect } from '../../dist/base/types.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import { fixtures, pathOfFolder, scratch, until } from '../support/index.js'

interface Golden {
  requests: {
    description: string
    filename: string
    suspend: boolean
    hex: string
    fd_position: number | null
    dialect: Dialect
  }[]
  replies: { description: string; hex: string; error?: string }[]
}

const golden = JSON.parse(fs.readFileSync(path.join(fixtures, 'golden/requests.json'), 'utf8')) as Golden
const native = loadSimulatorNative()

/** A server that records the bytes of a request and the position of the descriptor in them. */
class Recorder {
  readonly path: string
  readonly #listener: number
  bytes = Buffer.alloc(0)
  descriptorPosition: number | null = null
  directory: string | null = null

  constructor(socketPath: string) {
    const listener = native.simulator.listenStream(socketPath, 1)
    if (isFailure(listener)) throw new Error(`listen: ${listener.errno}`)
    this.path = socketPath
    this.#listener = listener
  }

  /** Reads one connection until EOF, then closes it. */
  async record(): Promise<void> {
    const connection = await this.#accept()
    await until(() => this.#takeByte(connection), 'the end of the request')
    native.close(connection)
  }

  /** Reads one byte at a time, so that the position of a descriptor is known. Returns true at EOF. */
  #takeByte(connection: number): boolean {
    for (;;) {
      const before = native.ownedDescriptors()
      const byte = native.simulator.receiveDescriptors(connection, 2)
      if (isFailure(byte)) return false
      if (byte.bytes === 0) return true
      // The native call does not return the value of the byte. In a message with a descriptor it is always zero.
      if (byte.descriptors.length > 0) {
        this.descriptorPosition = this.bytes.length
        this.directory = pathOfFolder(byte.descriptors[0] ?? -1, path.dirname(this.path))
        for (const descriptor of byte.descriptors) native.close(descriptor)
      }
      this.bytes = Buffer.concat([this.bytes, Buffer.alloc(1)])
      if (native.ownedDescriptors() !== before) throw new Error('a descriptor was not closed')
    }
  }

  /** Reads one connection by recv(), which returns the values of the bytes. */
  async recordBytes(): Promise<void> {
    const connection = await this.#accept()
    await until(() => {
      for (;;) {
        const chunk = native.simulator.receive(connection, 65536)
        if (isFailure(chunk)) return false
        if (chunk.length === 0) return true
        this.bytes = Buffer.concat([this.bytes, chunk])
      }
    }, 'the end of the request')
    native.close(connection)
  }

  async #accept(): Promise<number> {
    let connection = -1
    await until(() => {
      const accepted = native.simulator.accept(this.#listener)
      if (!isFailure(accepted)) connection = accepted
      return connection !== -1
    }, 'a connection')
    return connection
  }

  close(): void {
    native.close(this.#listener)
    fs.unlinkSync(this.path)
  }
}

async function sendGolden(
  request: Golden['requests'][number],
  socketPath: string,
  directory: number,
): Promise<void> {
  using cancellation = new Cancellation({ doing: 'test', vm: 'vm0' })
  const ours = process.geteuid?.() ?? 0
  const target = {
    vm: 'vm0',
    runDirectory: '/',
    vmmDirectory: '/',
    dialect: 'auto',
    trustedUids: [ours],
  } as const
  const located = { socketPath, kind: 'nvlist', ownerUid: ours, identity: socketPath, changedMs: 0 } as const
  const operation = request.suspend ? 'suspend' : 'checkpoint'
  const { dialect, filename } = request
  const retryPolicy = { isLast: true, refusalMs: 0, onFull: () => undefined }
  const recipient = { located, target, peers: new PeerMemory(), retryPolicy }
  const sent = await sendRequest({ dialect, operation, filename, directory }, recipient, cancellation)
  await sent.ended
}

t.test('every golden request is sent byte for byte as upstream sends it', async (t) => {
  const directory = scratch(t)
  const descriptor = native.openPath(directory, fs.constants.O_DIRECTORY)
  if (isFailure(descriptor)) throw new Error('open')
  for (const [index, request] of golden.requests.entries()) {
    const what = `${request.dialect}: ${request.description}, suspend ${request.suspend}`
    const values = new Recorder(path.join(directory, `values${index}`))
    await Promise.all([sendGolden(request, values.path, descriptor), values.recordBytes()])
    t.equal(values.bytes.toString('hex'), request.hex, `${what}: bytes`)
    values.close()
    const positions = new Recorder(path.join(directory, `positions${index}`))
    await Promise.all([sendGolden(request, positions.path, descriptor), positions.record()])
    t.equal(positions.bytes.length * 2, request.hex.length, `${what}: length`)
    t.equal(positions.descriptorPosition, request.fd_position, `${what}: position of the descriptor`)
    if (request.fd_position !== null) t.equal(positions.directory, directory, `${what}: the directory`)
    positions.close()
  }
  native.close(descriptor)
})

t.test('a client passes only its inbox, not a directory above it', async (t) => {
  const directory = fs.realpathSync(scratch(t))
  const recorder = new Recorder(path.join(directory, 'vm0'))
  const checkpointDirectory = path.join(directory, 'checkpoints')
  const client = createClient({ runDirectory: directory, checkpointDirectory, dialect: 'descriptor' })
  const [result] = await Promise.allSettled([client.createCheckpoint('vm0'), recorder.record()])
  t.equal(result.status, 'rejected', 'no file was written')
  t.match(recorder.directory, new RegExp(`^${checkpointDirectory}/vm0/\\.staging/[0-9a-z]{1,12}/in$`))
  t.equal(recorder.descriptorPosition, 143 + 'ckp'.length, 'after the payload')
  recorder.close()
})

t.test('the golden replies are decoded, and encoded to the same bytes again', async (t) => {
  for (const { description, hex, error } of golden.replies) {
    const pairs = native.decodeNvlist(Buffer.from(hex, 'hex'), 0)
    const expected = error === undefined ? [] : [{ name: 'error', type: 'string', value: error }]
    t.strictSame(pairs, expected, description)
    t.equal(native.simulator.encodeNvlist(pairs ?? []).toString('hex'), hex, `${description}: encoded again`)
  }
})

/**
 * Returns an nvlist with one null whose name has `nameBytes` bytes. The encoder does not accept names of every length.
 */
function listOfOne(nameBytes: number): Buffer {
  const bytes = native.simulator.encodeNvlist([{ name: '', type: 'null', value: null }])
  const name = Buffer.from('n'.repeat(nameBytes))
  const list = Buffer.concat([bytes.subarray(0, -1), name, bytes.subarray(-1)])
  list.writeBigUInt64LE(BigInt(list.length - 19), 11)
  list.writeUInt16LE(nameBytes + 1, 20)
  return list
}

t.test('the decoder rejects every nvlist that is not exactly valid', async (t) => {
  const good = native.simulator.encodeNvlist([
    { name: 'b', type: 'bool', value: true },
    { name: 'n', type: 'number', value: 2n ** 64n - 1n },
    { name: 's', type: 'string', value: 'text' },
    { name: 'x', type: 'binary', value: Buffer.from([0, 1]) },
    { name: 'e', type: 'null', value: null },
    { name: 'd', type: 'descriptor', value: 0n },
  ])
  t.equal(native.decodeNvlist(good, 1)?.length, 6)
  t.equal(native.decodeNvlist(good, 0), undefined, 'a descriptor that was not received')
  t.equal(native.decodeNvlist(good, 2), undefined, 'one received descriptor too many')
  for (let length = 0; length < good.length; length++) {
    if (native.decodeNvlist(good.subarray(0, length), 1) !== undefined) t.fail(`truncated at ${length}`)
  }
  t.equal(native.decodeNvlist(Buffer.concat([good, Buffer.alloc(1)]), 1), undefined, 'an extra byte')
  const damaged: [string, number, number][] = [
    ['magic', 0, 0x6d],
    ['version', 1, 1],
    ['flags', 2, 1],
    ['big-endian', 2, 0x80],
    ['descriptors', 3, 2],
    ['size', 11, 1],
    ['type 0', 19, 0],
    ['type nvlist', 19, 5],
    ['type array', 19, 8],
    ['empty name', 20, 0],
    ['data size of a bool', 22, 2],
    ['items of a scalar', 30, 1],
    ['name without its NUL', 39, 0x62],
    ['bool 2', 40, 2],
  ]
  for (const [what, offset, value] of damaged) {
    const bytes = Buffer.from(good)
    t.not(bytes[offset], value, `${what}: the byte changes`)
    bytes[offset] = value
    t.equal(native.decodeNvlist(bytes, 1), undefined, what)
  }
  const twice = native.simulator.encodeNvlist([
    { name: 'a', type: 'null', value: null },
    { name: 'a', type: 'null', value: null },
  ])
  t.equal(native.decodeNvlist(twice, 0), undefined, 'a duplicate name')
  const unnamed = native.simulator.encodeNvlist([{ name: 'n', type: 'number', value: 1n }])
  unnamed.writeBigUInt64LE(1n, 3)
  t.equal(native.decodeNvlist(unnamed, 1), undefined, 'a descriptor in the header without a pair')
  const unsent = native.simulator.encodeNvlist([{ name: 'd', type: 'descriptor', value: 1n }])
  t.equal(native.decodeNvlist(unsent, 1), undefined, 'the second descriptor, if only one was received')
  t.match(native.decodeNvlist(listOfOne(2047), 0), [{ name: 'n'.repeat(2047), value: null }])
  t.equal(native.decodeNvlist(listOfOne(2048), 0), undefined, 'a name longer than libnv accepts')
  const inner = native.simulator.encodeNvlist([{ name: 'ab', type: 'string', value: 'xyz' }])
  for (const letter of ['a', 'x']) {
    const bytes = Buffer.from(inner)
    bytes[bytes.indexOf(letter)] = 0
    t.equal(native.decodeNvlist(bytes, 0), undefined, `NUL in place of ${letter}`)
  }
})

t.test('the native calls reject invalid arguments', async (t) => {
  t.throws(() => native.encodeRequest('struct', 'checkpoint', 'x'.repeat(100)), TypeError)
  t.equal(native.encodeRequest('struct', 'checkpoint', 'x'.repeat(99)).length, 104)
  t.throws(() => native.encodeRequest('path', 'refused', '/x'), TypeError)
  t.throws(() => native.encodeRequest('path', 'checkpoint', '/x\0y'), TypeError)
  t.throws(() => native.openAt('x' as unknown as number, 'x', 0, 0), TypeError)
  t.throws(() => native.close(0), TypeError, 'a descriptor that this environment does not own')
  const { EINVAL } = os.constants.errno
  t.match(native.openAt(3, 'a/b', 0, 0), { syscall: 'openat', errno: EINVAL }, 'a name with a slash')
  t.match(native.unlinkAt(3, ''), { syscall: 'unlinkat', errno: EINVAL }, 'an empty name')
})

/** Returns the members of an interface declared in a file. */
function declaredIn(file: string, name: string): string[] {
  const source = fs.readFileSync(new URL(`../../lib/${file}`, import.meta.url), 'utf8')
  const start = source.indexOf(`interface ${name} {`)
  const body = source.slice(start, source.indexOf('\n}\n', start))
  return [...body.matchAll(/^ {2}(?:readonly )?([a-zA-Z]+)\??[(:]/gm)].map((match) => match[1]!)
}

t.test('the declared native interface equals the exported one', async (t) => {
  const elsewhere = process.platform === 'linux' ? ['clearFlagsAt'] : ['exclusiveBytes']
  const declared = declaredIn('base/native.ts', 'Native').filter((name) => !elsewhere.includes(name))
  t.strictSame([...declared, 'simulator'].sort(), Object.keys(native).sort())
  const ofSimulator = declaredIn('simulator/native_calls.ts', 'SimulatorCalls')
  t.strictSame(ofSimulator.sort(), Object.keys(native.simulator).sort())
})

t.test('only the simulator uses the native calls that are reserved for it', async (t) => {
  const lib = new URL('../../lib/', import.meta.url)
  const files = fs.readdirSync(lib, { recursive: true, encoding: 'utf8' })
  const production = files.filter((file) => file.endsWith('.ts') && !file.startsWith('simulator/'))
  t.ok(production.length > 0)
  const callers = production.filter((file) =>
    /native_calls\.js|\bSimulator(Native|Calls)\b/.test(fs.readFileSync(new URL(file, lib), 'utf8')),
  )
  t.strictSame(callers, [])
})
