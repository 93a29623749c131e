/** Answers, clients that leave early, and who waits for whom. */
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
  Conversation,
  ask,
  until,
  isAlive,
  mebibyte,
  startVm,
  Folder,
  set,
  errorIn,
} from '../support/simulating.js'

// Most of the time goes into starting processes.
t.jobs = 4
t.setTimeout(120_000)

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
