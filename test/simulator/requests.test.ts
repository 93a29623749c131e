/** Requests in every dialect, served and refused. */
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
import { newRequestState, receiveRequest } from '../../dist/simulator/receive_request.js'
import '../support/plain_children.js'
import {
  native,
  goldenFolder,
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
  Conversation,
  ok,
  ask,
  until,
  isAlive,
  mebibyte,
  memoryBytes,
  startVm,
  Folder,
  set,
  rejectedNvlists,
  type GoldenMetadata,
} from '../support/simulating.js'

// Most of the time goes into starting processes.
t.jobs = 4
t.setTimeout(120_000)
// Reading it means setting it: once, and both times to a safe value.
const umask = process.umask(0o077)
process.umask(umask)

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
