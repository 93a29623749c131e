/** A bhyve that fails, dies, hangs or hangs up: what it leaves. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { type SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { isFailure } from '../../dist/base/native.js'
import '../support/plain_children.js'
import {
  native,
  goldenFolder,
  goldenSuccess,
  nvlistRequest,
  structRequest,
  Conversation,
  ok,
  ask,
  until,
  isAlive,
  mebibyte,
  memoryBytes,
  startVm,
  Folder,
  errorIn,
} from '../support/simulating.js'

// Most of the time goes into starting processes.
t.jobs = 4
t.setTimeout(120_000)

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
