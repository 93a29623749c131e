/** Faults that occur a limited number of times, and faults that are set and cleared while the VM runs. */
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { createClient, type CheckpointClient } from 'bhyve-checkpoint'
import { clearFault, setFault, SimulatedBhyve, SimulatedFleet, type Fault } from 'bhyve-checkpoint/simulator'
import '../support/plain_children.js'
import { rejection, scratch } from '../support/index.js'
import {
  Connection,
  errorIn,
  nvlistRequest,
  OutputDirectory,
  sendRequest,
  startVm,
  structRequest,
  until,
} from '../support/simulating.js'
import { machineArgs, StandIn } from '../support/stand_in.js'

// These tests mostly wait for processes to start.
t.jobs = 4

const memoryBytes = 64 * 1024

const steps = [
  'open',
  'pause',
  'memory',
  'kernel',
  'device',
  'metadata',
  'accept',
  'receive',
  'reply',
] as const

function clientOf(t: Test, runDirectory: string): CheckpointClient {
  return createClient({ runDirectory, checkpointDirectory: scratch(t) })
}

/** Makes one request. Returns true if its checkpoint is complete. */
async function succeeds(vm: { socketPath: string }, output: OutputDirectory, name: string): Promise<boolean> {
  await sendRequest(vm, { bytes: nvlistRequest(name), directory: output.descriptor })
  return output.isComplete(name, memoryBytes)
}

t.test('a fault occurs as often as `times` says, then the VM works normally', async (t) => {
  const vm = await startVm(t, { memoryBytes })
  const faults: Fault[] = [
    ...(['open', 'pause', 'memory', 'kernel', 'device', 'metadata'] as const).flatMap((at) =>
      (['fail', 'no-space'] as const).map((kind) => ({ at, kind, times: 2 })),
    ),
    ...(['accept', 'receive'] as const).map((at) => ({ at, kind: 'close', times: 2 }) as const),
  ]
  for (const fault of faults) {
    const output = new OutputDirectory(t)
    await vm.setFault(fault)
    const outcomes = []
    for (const name of ['a', 'b', 'c', 'd']) outcomes.push(await succeeds(vm, output, name))
    t.same(outcomes, [false, false, true, true], `${fault.at}/${fault.kind}`)
  }
})

t.test('the option fault can have `times`, and the library reports only these failures', async (t) => {
  const fault = { at: 'memory', kind: 'no-space', times: 1 } as const
  const vm = await startVm(t, { memoryBytes, fault })
  const client = clientOf(t, vm.runDirectory)
  t.equal((await rejection(client.createCheckpoint('vm0'))).code, 'ERR_CHECKPOINT_FAILED')
  t.equal((await client.createCheckpoint('vm0')).memoryBytes, memoryBytes)
})

t.test('a connection without a request uses up a fault at accept, but not at reply', async (t) => {
  const output = new OutputDirectory(t)
  const vm = await startVm(t, { memoryBytes, dialect: 'reply' })
  const empty = () => sendRequest(vm, { bytes: Buffer.alloc(0) })
  const request = { bytes: nvlistRequest('x'), directory: output.descriptor }
  await vm.setFault({ at: 'reply', kind: 'close', times: 1 })
  await empty()
  t.same(await sendRequest(vm, request), Buffer.alloc(0), 'reply')
  t.not((await sendRequest(vm, request)).length, 0)
  await vm.setFault({ at: 'accept', kind: 'close', times: 1 })
  await empty()
  t.not((await sendRequest(vm, request)).length, 0, 'accept')
})

t.test('a request that hangs continues when its fault is cleared or replaced', async (t) => {
  const vm = await startVm(t, { memoryBytes })
  for (const at of steps) {
    const output = new OutputDirectory(t)
    await vm.setFault({ at, kind: 'hang' })
    const sent = { bytes: nvlistRequest('x'), directory: output.descriptor }
    const hanging = new Connection(vm.socketPath, sent)
    if (at === 'reply') await until(() => output.isComplete('x', memoryBytes), at)
    else if (at !== 'accept' && at !== 'receive') await until(() => output.size('x.kern') >= 0, at)
    t.notOk(hanging.ended, at)
    if (at === 'memory') await vm.setFault({ at, kind: 'fail', times: 1 })
    else await vm.clearFault()
    await hanging.end
    t.ok(output.isComplete('x', memoryBytes), `${at}: completed`)
    t.equal(await succeeds(vm, output, 'y'), at !== 'memory', `${at}: the next request gets the new fault`)
  }
})

t.test('struct: a request that hangs in the middle of its reception continues', async (t) => {
  const output = new OutputDirectory(t)
  const vm = await startVm(t, { memoryBytes, dialect: 'struct', fault: { at: 'receive', kind: 'hang' } })
  const hanging = new Connection(vm.socketPath, { bytes: structRequest(0, path.join(output.path, 'x')) })
  await vm.clearFault()
  await hanging.end
  t.ok(output.isComplete('x', memoryBytes))
})

t.test('setFault: an invalid fault is rejected, and the previous fault stays in force', async (t) => {
  const vm = await startVm(t, { memoryBytes, dialect: 'reply', fault: { at: 'pause', kind: 'fail' } })
  const invalid: [unknown, typeof TypeError | typeof RangeError, RegExp][] = [
    [{ at: 'lunch', kind: 'fail' }, TypeError, /'at' must be one of/],
    [{ at: 'reply', kind: 'no-space' }, TypeError, /'kind' for 'reply' must be/],
    [{ at: 'pause', kind: 'fail', times: 0 }, RangeError, /'fault.times' must be from 1 to/],
    [{ at: 'pause', kind: 'fail', times: 1.5 }, RangeError, /'fault.times' must be a whole number/],
    [{ at: 'pause', kind: 'fail', times: '1' }, TypeError, /'fault.times' must be a number/],
    [{ at: 'pause', kind: 'fail', time: 1 }, TypeError, /unknown property 'time'/],
    [undefined, TypeError, /must be an object/],
    [null, TypeError, /must be an object/],
  ]
  const fleet = await SimulatedFleet.start({ vms: ['a'], memoryBytes })
  t.teardown(() => fleet.stop())
  for (const [fault, kind, message] of invalid) {
    for (const target of [vm, fleet]) {
      const setting = target.setFault(fault as Fault)
      await t.rejects(setting, new kind(), JSON.stringify(fault))
      await t.rejects(setting, { message })
    }
    await t.rejects(setFault(path.join(scratch(t), 'fault'), fault as Fault), { message })
    if (fault !== undefined) await t.rejects(startVm(t, { fault: fault as Fault }), { message })
  }
  const output = new OutputDirectory(t)
  const answer = await sendRequest(vm, { bytes: nvlistRequest('x'), directory: output.descriptor })
  t.equal(errorIn(answer), 'Could not pause devices')
})

t.test('setFault and clearFault reject after the end of the process', async (t) => {
  const vm = await startVm(t, { memoryBytes })
  await vm.setFault({ at: 'pause', kind: 'kill', times: 1 })
  const output = new OutputDirectory(t)
  t.notOk(await succeeds(vm, output, 'x'))
  t.same(await vm.exited, { code: null, signal: 'SIGKILL' })
  const message = /fault of the simulated VM 'vm0': its process has ended/
  await t.rejects(vm.setFault({ at: 'pause', kind: 'fail' }), { message })
  await t.rejects(vm.clearFault(), { message })
})

t.test('fleet: each VM has its own fault and counts its own occurrences', async (t) => {
  const fleet = await SimulatedFleet.start({
    vms: ['a', { vm: 'b', fault: { at: 'pause', kind: 'fail', times: 1 } }],
    memoryBytes,
    fault: { at: 'memory', kind: 'fail', times: 2 },
  })
  t.teardown(() => fleet.stop())
  const [a, b] = [fleet.member('a'), fleet.member('b')]
  const output = new OutputDirectory(t)
  const outcomes = async (vm: SimulatedBhyve) => {
    const results = []
    for (const name of ['1', '2', '3']) results.push(await succeeds(vm, output, `${vm.vm}${name}`))
    fs.readdirSync(output.path).forEach((name) => fs.rmSync(path.join(output.path, name)))
    return results
  }
  t.same(await outcomes(a), [false, false, true])
  t.same(await outcomes(b), [false, true, true], 'its own option')
  await b.setFault({ at: 'device', kind: 'fail' })
  t.same(await outcomes(a), [true, true, true], 'only b has a fault')
  t.same(await outcomes(b), [false, false, false])
  await fleet.setFault({ at: 'kernel', kind: 'fail', times: 1 })
  t.same([await outcomes(a), await outcomes(b)], Array(2).fill([false, true, true]), 'of all VMs')
  await fleet.setFault({ at: 'kernel', kind: 'fail' })
  await fleet.clearFault()
  t.same([await outcomes(a), await outcomes(b)], Array(2).fill([true, true, true]), 'cleared')
})

t.test('stand-in: faultFile replaces the option fault while the VM runs', async (t) => {
  const directory = scratch(t)
  const [faultFile, socketPath] = [path.join(directory, 'fault.json'), path.join(directory, 'vm0')]
  const options = { faultFile, fault: { at: 'open', kind: 'fail', times: 1 } }
  const standIn = new StandIn(t, directory, [...machineArgs, 'vm0'], { options, byNode: true })
  await standIn.listening(socketPath)
  const output = new OutputDirectory(t)
  const request = async (name: string) => {
    await sendRequest({ socketPath }, { bytes: nvlistRequest(name), directory: output.descriptor })
    return output.isComplete(name)
  }
  t.same([await request('a'), await request('b')], [false, true], 'the option, while there is no file')
  await setFault(faultFile, { at: 'memory', kind: 'no-space', times: 1 })
  t.same([await request('c'), await request('d')], [false, true])
  await setFault(faultFile, { at: 'memory', kind: 'no-space', times: 1 })
  t.same([await request('e'), await request('f')], [false, true], 'the same fault counts anew')
  await setFault(faultFile, { at: 'memory', kind: 'fail' })
  await clearFault(faultFile)
  t.ok(await request('g'), 'cleared')
  t.same(fs.readdirSync(directory).sort(), ['fault.json', 'vm0'], 'no temporary files')
  fs.rmSync(faultFile)
  t.same([await request('h'), await request('i')], [false, true], 'without the file, the option counts anew')
  fs.writeFileSync(faultFile, '{"at":"lunch"}')
  t.notOk(await request('j'))
  t.same(await standIn.ended, { code: 4, signal: null }, 'an invalid file ends the process')
  t.match(standIn.errors, /bhyve: Cannot use the fault file '.*fault\.json': .*'at' must be one of/)
})

t.test('stand-in: rejects an invalid faultFile before it listens', async (t) => {
  const directory = scratch(t)
  const broken = path.join(directory, 'broken.json')
  fs.writeFileSync(broken, '{')
  for (const [faultFile, code, message] of [
    ['fault.json', 64, /'faultFile' must be an absolute path/],
    [7, 64, /'faultFile' must be a path/],
    [broken, 4, /Cannot use the fault file/],
  ] as const) {
    const options = { options: { faultFile }, byNode: true }
    const standIn = new StandIn(t, directory, [...machineArgs, 'vm0'], options)
    t.same(await standIn.ended, { code, signal: null }, String(faultFile))
    t.match(standIn.errors, message)
  }
  t.same(fs.readdirSync(directory), ['broken.json'])
})
