/** The files and the VM's state after a fault: a failure, a killed bhyve, a hang, a closed connection. */
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
  goldenDirectory,
  goldenSuccess,
  nvlistRequest,
  structRequest,
  Connection,
  ok,
  sendRequest,
  until,
  isAlive,
  mebibyte,
  memoryBytes,
  startVm,
  OutputDirectory,
  errorIn,
} from '../support/simulating.js'

// These tests mostly wait for processes to start.
t.jobs = 4
t.setTimeout(120_000)

type Fault = NonNullable<SimulatorOptions['fault']>
type Size = 'absent' | 'empty' | 'partial' | 'full'

interface FaultCase {
  fault: Fault
  /** The sizes of the RAM file, `.kern` and `.meta`. */
  left: readonly [Size, Size, Size]
}

const kernelSize = 24472
const metadataSize = readFileSync(join(goldenDirectory, 'meta', 'descriptor.meta')).length

/** See section 4 of docs/protocol.md. */
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

/** A bhyve that is killed or hangs has not flushed its metadata. */
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

function leftOf(output: OutputDirectory, name: string): [Size, Size, Size] {
  const classify = (size: number, full: number): Size =>
    size < 0 ? 'absent' : size === 0 ? 'empty' : size < full ? 'partial' : 'full'
  return [
    classify(output.size(name), memoryBytes),
    classify(output.size(`${name}.kern`), kernelSize),
    classify(output.size(`${name}.meta`), metadataSize),
  ]
}

const sameMetadata = { vm: 'ubuntu', memoryBytes } as const

t.test('a failed checkpoint leaves incomplete files, and the VM continues to run', async (t) => {
  for (const { fault, left } of failures) {
    const output = new OutputDirectory(t)
    const vm = await startVm(t, { ...sameMetadata, fault, dialect: 'reply' })
    const what = `${fault.at}/${fault.kind}`
    for (const name of ['first', 'second']) {
      const answer = await sendRequest(vm, { bytes: nvlistRequest(name), directory: output.descriptor })
      t.same(leftOf(output, name), left, `${what}: ${name}`)
      if (fault.at === 'metadata') t.same(answer, goldenSuccess, `${what}: reported as a success`)
      else t.type(errorIn(answer), 'string', what)
    }
    t.ok(isAlive(vm.pid), what)
    const suspendRequest = nvlistRequest('third', { suspend: true })
    await sendRequest(vm, { bytes: suspendRequest, directory: output.descriptor })
    t.same(leftOf(output, 'third'), left, `${what}: suspend`)
    if (fault.at === 'metadata')
      t.same(await vm.exited, { code: 5, signal: null }, `${what}: the suspend destroys the VM`)
    else t.ok(isAlive(vm.pid), `${what}: a failed suspend leaves the VM running`)
    await vm.stop()
  }
})

t.test('a failure at a kernel structure leaves the same .meta as upstream', async (t) => {
  const output = new OutputDirectory(t)
  const vm = await startVm(t, { vm: 'ubuntu', memoryBytes: mebibyte, fault: { at: 'kernel', kind: 'fail' } })
  await sendRequest(vm, { bytes: nvlistRequest('x'), directory: output.descriptor })
  const expected = readFileSync(join(goldenDirectory, 'meta', 'failed-at-kernel-structure.meta'))
  t.same(output.bytes('x.meta'), expected)
  t.equal(output.size('x.kern'), 2424)
})

t.test('a kill during a checkpoint leaves the files written so far', async (t) => {
  for (const { at, left } of interruptions) {
    const output = new OutputDirectory(t)
    const vm = await startVm(t, { ...sameMetadata, fault: { at, kind: 'kill' } as Fault })
    await sendRequest(vm, { bytes: nvlistRequest('x'), directory: output.descriptor })
    t.same(await vm.exited, { code: null, signal: 'SIGKILL' }, at)
    t.same(leftOf(output, 'x'), left, at)
    await vm.stop()
  }
})

t.test('a hang blocks its connection and all later connections', async (t) => {
  for (const { at, left } of interruptions) {
    const output = new OutputDirectory(t)
    const vm = await startVm(t, { ...sameMetadata, fault: { at, kind: 'hang' } as Fault })
    const sent = { bytes: nvlistRequest('x'), directory: output.descriptor }
    const first = new Connection(vm.socketPath, sent)
    const second = new Connection(vm.socketPath, { ...sent, bytes: nvlistRequest('y') })
    await until(() => leftOf(output, 'x').join() === left.join(), `${at}: its files`)
    const idle = ok(native.connectStream(vm.socketPath), 'connect')
    t.same(native.simulator.poll([idle], 50), [], `${at}: no connection is served`)
    native.close(idle)
    t.notOk(first.ended || second.ended, at)
    t.same(leftOf(output, 'x'), left, at)
    t.equal(output.size('y.kern'), -1, at)
    await vm.stop()
    await Promise.all([first.end, second.end])
  }
})

t.test('a hang at accept: about a dozen connections fill the backlog, then connect fails', async (t) => {
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
  t.ok(full.includes(refusal), 'connect fails')
  t.ok(sockets.length >= 10 && sockets.length <= 16, `connections: ${String(sockets.length)}`)
})

t.test('a closed connection does not stop the VM', async (t) => {
  for (const at of ['accept', 'receive', 'reply'] as const) {
    for (const dialect of ['reply', 'descriptor'] as const) {
      const output = new OutputDirectory(t)
      const vm = await startVm(t, { dialect, fault: { at, kind: 'close' } })
      for (const name of ['x', 'y']) {
        const answer = await sendRequest(vm, { bytes: nvlistRequest(name), directory: output.descriptor })
        t.same(answer, Buffer.alloc(0), at)
        t.equal(output.isComplete(name), at === 'reply', at)
      }
      t.ok(isAlive(vm.pid), at)
      await vm.stop()
    }
  }
})

t.test('struct: a connection closed while the request is received leaves no files', async (t) => {
  const output = new OutputDirectory(t)
  const vm = await startVm(t, { dialect: 'struct', fault: { at: 'receive', kind: 'close' } })
  await sendRequest(vm, { bytes: structRequest(0, join(output.path, 'x')) })
  t.same(output.names, [])
  t.ok(isAlive(vm.pid))
})

t.test('a FIFO instead of a checkpoint file blocks the VM', async (t) => {
  const output = new OutputDirectory(t)
  const [code] = (await once(spawn('mkfifo', [join(output.path, 'x.kern')]), 'exit')) as [number]
  t.equal(code, 0)
  const vm = await startVm(t)
  const blocked = new Connection(vm.socketPath, { bytes: nvlistRequest('x'), directory: output.descriptor })
  const queued = new Connection(vm.socketPath, { bytes: nvlistRequest('y'), directory: output.descriptor })
  const idle = ok(native.connectStream(vm.socketPath), 'connect')
  t.same(native.simulator.poll([idle], 100), [])
  native.close(idle)
  t.notOk(blocked.ended || queued.ended)
  t.same(output.names, ['x.kern'])
  await vm.stop()
})
