/** Replies, clients that close the connection early, and the order of requests. */
import { mkdirSync, rmSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { SimulatedFleet } from 'bhyve-checkpoint/simulator'
import { NvType } from '../../dist/simulator/nvlist.js'
import '../support/plain_children.js'
import {
  native,
  goldenSuccess,
  goldenUnknownCommand,
  pair,
  message,
  u64,
  cmd,
  filename,
  fddir,
  goodPairs,
  nvlistRequest,
  structRequest,
  Connection,
  sendRequest,
  until,
  isAlive,
  mebibyte,
  startVm,
  OutputDirectory,
  filesOf,
  errorIn,
} from '../support/simulating.js'

// These tests mostly wait for processes to start.
t.jobs = 4
t.setTimeout(120_000)

// ---- struct ---------------------------------------------------------------------------------------------

t.test('struct: a connection that closes without a request repeats the previous request', async (t) => {
  const output = new OutputDirectory(t)
  const vm = await startVm(t, { dialect: 'struct' })
  await sendRequest(vm, { bytes: Buffer.alloc(0) })
  t.same(output.names, [], 'there is no previous request yet')
  await sendRequest(vm, { bytes: structRequest(0, join(output.path, 'x')) })
  for (const name of filesOf('x')) rmSync(join(output.path, name))
  await sendRequest(vm, { bytes: Buffer.alloc(0) })
  t.ok(output.isComplete('x'), 'the previous request is repeated')
  for (const name of filesOf('x')) rmSync(join(output.path, name))
  await sendRequest(vm, { bytes: structRequest(0xffffffff, join(output.path, 'y')) })
  t.same(output.names, [], 'an invalid operation has no effect')
  const op = Buffer.alloc(4)
  await sendRequest(vm, { bytes: op })
  t.same(output.names, filesOf('y'), 'a part of a request overwrites a part of the previous one')
})

t.test('reply: replies after the work, with an error text if it rejects the request', async (t) => {
  const output = new OutputDirectory(t)
  const vm = await startVm(t, { dialect: 'reply' })
  const directory = output.descriptor
  const ping = message([pair(NvType.string, 'cmd', Buffer.from('ping\0'))], { descriptors: 0n })
  t.same(await sendRequest(vm, { bytes: ping }), goldenUnknownCommand)
  t.type(errorIn(await sendRequest(vm, { bytes: message([cmd, filename, fddir]), directory })), 'string')
  t.same(
    await sendRequest(vm, { bytes: Buffer.from('no nvlist, and longer than a header') }),
    Buffer.alloc(0),
  )
  t.same(output.names, [])
  mkdirSync(join(output.path, 'good.meta'))
  t.same(
    await sendRequest(vm, { bytes: message(goodPairs), directory }),
    goldenSuccess,
    'a .meta that cannot be opened is reported as a success',
  )
})

t.test('reply: a request without a command aborts bhyve', async (t) => {
  const vm = await startVm(t, { dialect: 'reply' })
  await sendRequest(vm, { bytes: message([pair(NvType.number, 'cmd', u64(1n))], { descriptors: 0n }) })
  t.same(await vm.exited, { code: null, signal: 'SIGABRT' })
})

t.test('reply: a client that closes the connection before the reply kills the VM', async (t) => {
  const output = new OutputDirectory(t)
  const vm = await startVm(t, { dialect: 'reply' })
  new Connection(vm.socketPath, { bytes: message(goodPairs), directory: output.descriptor }).close()
  t.same(await vm.exited, { code: null, signal: 'SIGPIPE' })
  t.ok(output.isComplete('good'), 'the files are complete')
})

t.test('descriptor: a client that closes the connection early does not affect the VM', async (t) => {
  const output = new OutputDirectory(t)
  const vm = await startVm(t)
  new Connection(vm.socketPath, { bytes: message(goodPairs), directory: output.descriptor }).close()
  await sendRequest(vm, { bytes: nvlistRequest('next'), directory: output.descriptor })
  t.ok(output.isComplete('good'))
  t.ok(output.isComplete('next'))
})

// ---- time and order of requests -------------------------------------------------------------------------

t.test('a VM executes one request at a time', async (t) => {
  const output = new OutputDirectory(t)
  const vm = await startVm(t, { memoryBytes: 2 * mebibyte, writeRate: 8 * mebibyte })
  const started = performance.now()
  const connections = ['a', 'b', 'c'].map(
    (name) => new Connection(vm.socketPath, { bytes: nvlistRequest(name), directory: output.descriptor }),
  )
  await until(() => output.size('b.kern') >= 0, 'the second request is executed')
  t.ok(output.isComplete('a', 2 * mebibyte), 'the first is complete by then')
  t.equal(output.size('c.kern'), -1)
  await Promise.all(connections.map(({ end }) => end))
  t.ok(output.isComplete('c', 2 * mebibyte))
  t.ok(performance.now() - started >= 700, 'the write rate is not exceeded')
})

t.test('the RAM file grows during the copy', async (t) => {
  const output = new OutputDirectory(t)
  const vm = await startVm(t, { memoryBytes: 4 * mebibyte, writeRate: 16 * mebibyte })
  const connection = new Connection(vm.socketPath, {
    bytes: nvlistRequest('x'),
    directory: output.descriptor,
  })
  const sizes = new Set<number>()
  await until(() => {
    sizes.add(output.size('x'))
    return connection.ended
  }, 'the end')
  t.ok(sizes.size > 3, `different sizes: ${String(sizes.size)}`)
})

t.test('a request queued behind a suspend ends without a reply and creates no files', async (t) => {
  const output = new OutputDirectory(t)
  const vm = await startVm(t, { suspendExitCode: 0, writeRate: 64 * mebibyte })
  const directory = output.descriptor
  const first = new Connection(vm.socketPath, { bytes: nvlistRequest('x', { suspend: true }), directory })
  const second = new Connection(vm.socketPath, { bytes: nvlistRequest('y'), directory })
  t.same(await first.end, Buffer.alloc(0))
  t.same(await second.end, Buffer.alloc(0))
  t.same(await vm.exited, { code: 0, signal: null })
  t.same(output.names, filesOf('x'))
  t.ok(output.isComplete('x'))
})

t.test('a fleet serves its VMs concurrently and continues after the suspend of one', async (t) => {
  const output = new OutputDirectory(t)
  const vms = Array.from({ length: 200 }, (_, i) => `vm-${String(i)}`)
  const fleet = await SimulatedFleet.start({ vms, memoryBytes: 256 * 1024, writeRate: 512 * 1024 })
  t.teardown(() => fleet.stop())
  t.same(fleet.vms, vms)
  const request = (vm: string, name: string, suspend = false) =>
    new Connection(join(fleet.runDirectory, vm), {
      bytes: nvlistRequest(name, { suspend }),
      directory: output.descriptor,
    })
  const started = performance.now()
  const connections = vms.map((vm) => request(vm, vm))
  await Promise.all(connections.map(({ end }) => end))
  // Each takes half a second. In sequence, they would take 100 seconds.
  t.ok(performance.now() - started < 50_000, 'the VMs were served concurrently')
  t.ok(vms.every((vm) => output.isComplete(vm, 256 * 1024)))
  t.notOk(output.bytes('vm-0').equals(output.bytes('vm-1')), 'each has its own RAM')

  await request('vm-0', 'suspended', true).end
  t.ok(output.isComplete('suspended', 256 * 1024))
  const connected = native.connectStream(join(fleet.runDirectory, 'vm-0'))
  t.same(connected, { errno: constants.errno.ECONNREFUSED, syscall: 'connect' }, 'its socket file is stale')
  await request('vm-1', 'later').end
  t.ok(output.isComplete('later', 256 * 1024))
  t.ok(isAlive(fleet.pid!))
})
