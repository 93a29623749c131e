/** Tests of the space that reservations take from the next checkpoint. */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { isFailure } from '../../../dist/base/native.js'
import { reservedSpace } from '../../../dist/store/staging/space.js'
import { jobs } from '../../../dist/worker/jobs.js'
import { loadSimulatorNative } from '../../../dist/simulator/native_calls.js'
import { rejection, scratch } from '../../support/index.js'
import { start } from '../../support/small_vm.js'

const native = loadSimulatorNative()

t.test('an unused or missing directory has no reservations', (t) => {
  const directory = scratch(t)
  t.same(reservedSpace([directory, path.join(directory, 'missing')]), [])
  t.end()
})

t.test('createStage: records a reservation for the request of its intent, and for nothing else', (t) => {
  const directory = path.join(scratch(t), 'vm1')
  const common = { directory, name: 'a', ifExists: 'replace', writerUid: process.geteuid!() } as const
  const recordedFor = (memoryBytes: number | undefined, poweroff?: boolean): number | undefined => {
    const intent =
      poweroff === undefined ? undefined : ({ vm: 'vm1', name: 'a', ifExists: 'replace', poweroff } as const)
    const made = jobs.createStage({ ...common, memoryBytes, intent })
    const [own, ...others] = reservedSpace([directory])
    for (const owned of Object.values(made.descriptors)) native.close(owned)
    fs.rmSync(path.join(directory, '.staging', made.id), { recursive: true })
    t.strictSame(others, [])
    t.equal(own?.bytes, made.recorded?.bytes ?? 0, 'other stages see it')
    return made.recorded?.bytes
  }
  t.equal(recordedFor(4096, false), 4096)
  t.equal(recordedFor(4096, true), 4096)
  t.equal(recordedFor(undefined, false), undefined, 'the size is not known')
  t.equal(recordedFor(undefined, true), 0, 'a suspend needs at least the margin')
  t.equal(recordedFor(4096), undefined, 'no request is sent from this stage')
  t.end()
})

t.test('create: only live stages count as reservations', async (t) => {
  const { runDirectory } = await start(t)
  const checkpointDirectory = scratch(t)
  for (const [vm, size] of [
    ['vm2', '500000000000000'],
    ['vm3', '\0\0\0'],
    ['vm4', '-5'],
  ] as const) {
    const stage = path.join(checkpointDirectory, vm, '.staging/dead')
    fs.mkdirSync(path.join(stage, 'in'), { recursive: true })
    fs.writeFileSync(path.join(stage, 'size'), size)
  }
  const client = createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })
  t.match(await client.createCheckpoint('vm1', { memoryBytes: 65536 }), { name: 'checkpoint' })
  const live = path.join(checkpointDirectory, 'vm2/.staging/dead')
  const descriptor = native.openPath(live, fs.constants.O_DIRECTORY)
  if (isFailure(descriptor)) throw new Error('open')
  t.equal(native.lock(descriptor, 'exclusive'), 1)
  t.match(await rejection(client.createCheckpoint('vm1')), {
    code: 'ERR_NO_SPACE',
    availableBytes: 0,
    vm: 'vm1',
  })
  native.close(descriptor)
})

t.test('reserveSpace: an error of one request does not fail the others', (t) => {
  const made = ['vm1', 'vm2', 'vm3'].map((vm) => {
    const directory = path.join(scratch(t), vm)
    const intent = { vm, name: 'a', ifExists: 'replace', poweroff: false } as const
    const request = { directory, name: 'a', ifExists: 'replace', writerUid: process.geteuid!() } as const
    return { directory, made: jobs.createStage({ ...request, memoryBytes: 4096, intent }) }
  })
  const requests = made.map(({ directory, made: { descriptors, id, recorded } }, index) => ({
    handle: { ...descriptors, directoryPath: directory, id, ...(index === 1 && { directory: -1 }) },
    ...recorded!,
    ...(index === 2 && { bytes: 2 ** 52 }),
  }))
  t.match(jobs.reserveSpace(requests, []), [
    { kind: 'crowded' },
    { kind: 'failed', error: { code: 'ERR_SYSTEM' } },
    { kind: 'full', refusal: { requiredBytes: Number } },
  ])
  t.match(jobs.reserveSpace(requests.slice(0, 2), []), [{ kind: 'granted' }, { kind: 'failed' }])
  for (const { descriptors } of made.map((one) => one.made))
    for (const owned of Object.values(descriptors)) native.close(owned)
  t.end()
})

t.test('create: the expected size is not taken from a foreign checkpoint', async (t) => {
  const { runDirectory } = await start(t)
  const checkpointDirectory = scratch(t)
  const client = createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })
  await client.createCheckpoint('vm1')
  fs.writeFileSync(path.join(checkpointDirectory, 'vm1/foreign.ckp'), 'BHYVE-CHECKPOINT-MANIFEST-1')
  const totals = new Set<number | undefined>()
  await client.createCheckpoint('vm1', {
    onProgress: ({ phase, totalBytes }) => phase !== 'queued' && totals.add(totalBytes),
  })
  t.strictSame([...totals], [65536])
})
