/** Requests in each dialect that a simulated bhyve executes or rejects. */
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import t from 'tap'
import { NvType } from '../../dist/simulator/nvlist.js'
import { FaultInjection } from '../../dist/simulator/fault_injection.js'
import { newRequestState, receiveRequest } from '../../dist/simulator/receive_request.js'
import '../support/plain_children.js'
import {
  native,
  goldenDirectory,
  golden,
  goldenSuccess,
  payloadOf,
  pair,
  message,
  u64,
  cmd,
  filename,
  suspend,
  fddir,
  goodPairs,
  nvlistRequest,
  structRequest,
  type Sent,
  Connection,
  ok,
  sendRequest,
  until,
  isAlive,
  mebibyte,
  memoryBytes,
  startVm,
  OutputDirectory,
  filesOf,
  rejectedNvlists,
  type GoldenMetadata,
} from '../support/simulating.js'

// These tests mostly wait for processes to start.
t.jobs = 4
t.setTimeout(120_000)
// The umask can only be read by setting it. Do that once, with a safe value.
const umask = process.umask(0o077)
process.umask(umask)

// ---- upstream's requests on the socket ------------------------------------------------------------------

t.test("dialects descriptor and reply execute upstream's requests", async (t) => {
  for (const dialect of ['descriptor', 'reply'] as const) {
    const output = new OutputDirectory(t)
    const vm = await startVm(t, { dialect, vm: 'ubuntu', memoryBytes: 4 * mebibyte })
    t.equal(vm.socketPath, join(vm.runDirectory, 'ubuntu'))
    const expected = dialect === 'reply' ? goldenSuccess : Buffer.alloc(0)
    const requests = golden.requests.filter((request) => request.dialect === 'descriptor' && !request.suspend)
    for (const request of requests) {
      const answer = await sendRequest(vm, { bytes: payloadOf(request), directory: output.descriptor })
      t.same(answer, expected, request.description)
      t.ok(output.isComplete(request.filename), request.description)
    }
    t.equal(output.names.length, 3 * new Set(requests.map((request) => request.filename)).size)
    t.ok(output.bytes('x1').equals(output.bytes('a')), 'each checkpoint has the same RAM')
    t.same(output.bytes('x1.meta'), readFileSync(join(goldenDirectory, 'meta', 'descriptor.meta')))
    t.equal(output.size('x1.kern'), 24472)
    for (const name of filesOf('x1')) {
      t.equal(statSync(join(output.path, name)).mode & 0o777, 0o700 & ~umask, name)
    }
    t.same(readdirSync(join(dirname(vm.runDirectory), 'cwd')), [], 'no file in the working directory')
    const last = golden.requests.find((request) => request.dialect === 'descriptor' && request.suspend)
    if (last === undefined) throw new Error('no golden suspend')
    t.same(await sendRequest(vm, { bytes: payloadOf(last), directory: output.descriptor }), Buffer.alloc(0))
    t.same(await vm.exited, { code: 5, signal: null })
    t.ok(existsSync(vm.socketPath), 'the socket file stays')
    t.ok(output.isComplete(last.filename))
  }
})

/** The path in upstream's requests. The test replaces it by a path of the same length next to the working directory. */
const goldenPath = '/var/vm/snap1'
const relativePath = '../outside/x1'

t.test("dialects path and struct execute upstream's requests", async (t) => {
  for (const dialect of ['path', 'struct'] as const) {
    const vm = await startVm(t, { dialect, suspendExitCode: 0 })
    const outside = join(dirname(vm.runDirectory), 'outside')
    if (dialect === 'struct') t.equal(vm.socketPath, join(vm.runDirectory, 'checkpoint', 'vm0'))
    mkdirSync(outside)
    for (const request of golden.requests.filter((request) => request.dialect === dialect)) {
      const bytes = payloadOf(request)
      bytes.write(relativePath, bytes.indexOf(goldenPath))
      rmSync(join(outside, 'x1'), { force: true })
      t.same(await sendRequest(vm, { bytes }), Buffer.alloc(0))
      t.same(readdirSync(outside).sort(), filesOf('x1'), request.description)
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

t.test('path: a request of the dialect descriptor writes into the working directory of bhyve', async (t) => {
  const output = new OutputDirectory(t)
  const vm = await startVm(t, { dialect: 'path' })
  await sendRequest(vm, { bytes: nvlistRequest('stray'), directory: output.descriptor })
  t.same(output.names, [])
  t.same(readdirSync(join(dirname(vm.runDirectory), 'cwd')).sort(), filesOf('stray'))
})

t.test('descriptor: a request of the dialect path is rejected at once', async (t) => {
  const output = new OutputDirectory(t)
  const vm = await startVm(t)
  const path = join(output.path, 'x')
  t.same(await sendRequest(vm, { bytes: nvlistRequest(path, { fddir: false }) }), Buffer.alloc(0))
  t.same(output.names, [])
})

t.test('bhyve follows symbolic links and truncates existing files', async (t) => {
  const output = new OutputDirectory(t)
  const elsewhere = new OutputDirectory(t)
  symlinkSync(join(elsewhere.path, 'target'), join(output.path, 'x'))
  writeFileSync(join(output.path, 'x.kern'), Buffer.alloc(mebibyte))
  const vm = await startVm(t)
  await sendRequest(vm, { bytes: nvlistRequest('x'), directory: output.descriptor })
  t.same(elsewhere.names, ['target'])
  t.ok(output.isComplete('x'))
  t.equal(output.size('x.kern'), 24472)
})

// ---- rejections -----------------------------------------------------------------------------------------

function rejectionsOf(output: OutputDirectory): (Sent & { why: string })[] {
  const directory = output.descriptor
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
    { why: 'huge size', bytes: message(goodPairs, { size: 2n ** 63n }), directory },
    { why: 'too many descriptors announced', bytes: message(goodPairs, { descriptors: 2n }), directory },
    {
      why: 'huge number of descriptors',
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
    { why: 'not an nvlist', bytes: Buffer.from('GET / HTTP/1.1\r\nHost: bhyve\r\n\r\n') },
  ]
}

t.test('a rejected request creates no files, and the next request is executed', async (t) => {
  for (const dialect of ['descriptor', 'reply'] as const) {
    const output = new OutputDirectory(t)
    const vm = await startVm(t, { dialect, memoryBytes: 4096 })
    for (const rejection of rejectionsOf(output)) {
      await sendRequest(vm, rejection)
      t.same(output.names, [], `${dialect}: ${rejection.why}`)
    }
    await sendRequest(vm, { bytes: message(goodPairs), directory: output.descriptor })
    t.ok(output.isComplete('good', 4096), `${dialect}: still serving`)
  }
})

t.test('descriptor: a request without a command is rejected, and bhyve continues to run', async (t) => {
  const output = new OutputDirectory(t)
  const vm = await startVm(t)
  const bytes = message([filename, suspend, fddir])
  t.same(await sendRequest(vm, { bytes, directory: output.descriptor }), Buffer.alloc(0))
  t.same(output.names, [])
  t.ok(isAlive(vm.pid))
})

t.test('a descriptor sent with the payload is lost, and bhyve waits for another one', async (t) => {
  const output = new OutputDirectory(t)
  const vm = await startVm(t)
  const bytes = message(goodPairs)
  const socket = ok(native.connectStream(vm.socketPath), 'connect')
  t.teardown(() => {
    native.close(socket)
  })
  ok(native.send(socket, bytes.subarray(0, 1), 0), 'send')
  // The version in the header is a zero byte. It carries the descriptor.
  ok(native.sendDescriptor(socket, output.descriptor), 'sendDescriptor')
  ok(native.send(socket, bytes.subarray(2), 0), 'send')
  const queued = new Connection(vm.socketPath, {
    bytes: nvlistRequest('queued'),
    directory: output.descriptor,
  })
  t.same(native.simulator.poll([socket], 100), [], 'the request is not rejected yet, and the next one waits')
  t.same(output.names, [])
  native.shutdownWrite(socket)
  await queued.end
  t.same(output.names, filesOf('queued'))
})

t.test(
  'descriptors: a request is rejected if its descriptor is not a writable directory or its name is a path',
  async (t) => {
    const output = new OutputDirectory(t)
    writeFileSync(join(output.path, 'file'), '')
    const file = openSync(join(output.path, 'file'), 'r')
    t.teardown(() => {
      closeSync(file)
    })
    const vm = await startVm(t)
    await sendRequest(vm, { bytes: message(goodPairs), directory: file })
    t.same(output.names, ['file'], 'a file instead of a directory')
    await sendRequest(vm, { bytes: nvlistRequest('a/b'), directory: output.descriptor })
    await sendRequest(vm, { bytes: nvlistRequest('/a'), directory: output.descriptor })
    t.same(output.names, ['file'], 'a path instead of a name')
    if (process.getuid?.() !== 0) {
      chmodSync(output.path, 0o500)
      await sendRequest(vm, { bytes: message(goodPairs), directory: output.descriptor })
      t.same(output.names, ['file'], 'a directory that is not writable')
      chmodSync(output.path, 0o700)
    }
    mkdirSync(join(output.path, 'good'))
    await sendRequest(vm, { bytes: message(goodPairs), directory: output.descriptor })
    t.same(output.names, ['file', 'good', 'good.kern'], 'the RAM file cannot be opened')
    t.equal(output.size('good.kern'), 0)
  },
)

t.test('descriptors: a request is accepted only with as many descriptors as announced', async (t) => {
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
    const faults = new FaultInjection(scripted, undefined, undefined)
    const halfway = () => faults.inject('receive')
    const { value } = receiveRequest(scripted, -1, 'descriptor', state, halfway).next()
    t.same(state.descriptors, came.descriptors, 'all descriptors are kept, so that they will be closed')
    return typeof value === 'object' && 'kind' in value ? value.kind : value
  }
  t.equal(receive(1n, { descriptors: [7], truncated: false }), 'checkpoint')
  t.equal(receive(2n, { descriptors: [7, 8], truncated: false }), 'checkpoint', 'one too many, but announced')
  t.equal(receive(1n, { descriptors: [7, 8], truncated: false }), 'failed')
  t.equal(receive(1n, { descriptors: [7], truncated: true }), 'failed')
  t.equal(receive(2n, { descriptors: [7], truncated: false }), 'failed')
  t.equal(receive(1n, { descriptors: [], truncated: false }), 'failed')
})

const descriptorDirectory = (pid: number) => `/proc/${String(pid)}/fd`

t.test('requests leak no descriptors', { skip: !existsSync(descriptorDirectory(process.pid)) }, async (t) => {
  const output = new OutputDirectory(t)
  const vm = await startVm(t, { memoryBytes: 4096 })
  const bad = { bytes: message([cmd, filename, fddir]), directory: output.descriptor }
  const good = { bytes: message(goodPairs), directory: output.descriptor }
  await sendRequest(vm, good)
  // bhyve closes its socket shortly after the client reads the end of the stream.
  const count = () => readdirSync(descriptorDirectory(vm.pid)).length
  await sendRequest(vm, bad)
  const before = count()
  for (let i = 0; i < 20; i++) await sendRequest(vm, i % 2 === 0 ? good : bad)
  await until(() => count() <= before, 'no more descriptors than before')
})

t.test('path and struct: a path that is too long is rejected and creates no files', async (t) => {
  const output = new OutputDirectory(t)
  const limits = { path: 250, struct: 95 } as const
  for (const [dialect, limit] of Object.entries(limits) as ['path' | 'struct', number][]) {
    const vm = await startVm(t, { dialect })
    const request = (length: number) => {
      const path = `${output.path}/${dialect}${'/'.repeat(length)}`.slice(0, length - 1)
      return dialect === 'path' ? nvlistRequest(`${path}x`, { fddir: false }) : structRequest(0, `${path}x`)
    }
    mkdirSync(join(output.path, dialect))
    await sendRequest(vm, { bytes: request(limit + 1) })
    t.same(readdirSync(join(output.path, dialect)), [], dialect)
    await sendRequest(vm, { bytes: request(limit) })
    t.same(readdirSync(join(output.path, dialect)).sort(), filesOf('x'), dialect)
  }
})
