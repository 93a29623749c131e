/** The manager of a suspend is killed: the next call of any process finds the state, and loses nothing of it. */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { isFailure } from '../../../dist/base/native.js'
import { loadSimulatorNative } from '../../../dist/simulator/native_calls.js'
import { checkpointFiles, rejection, scratch, tree, until } from '../../support/index.js'
import { Manager, start } from '../../support/suspending.js'

const MiB = 1024 * 1024
const native = loadSimulatorNative()

t.test('the manager is killed at each phase: the next call of any process publishes the state', async (t) => {
  for (const dialect of ['path', 'descriptor', 'reply'] as const) {
    for (const phase of ['saving', 'checking', 'syncing', 'publishing']) {
      const world = await start(t, { dialect, writeRate: phase === 'saving' ? 4 * MiB : undefined })
      const { bhyve, client, directory } = world
      const manager = new Manager(t, world, phase)
      await manager.reached(phase)
      await manager.kill()
      // In `reply` a bhyve that has nobody to answer to dies of it, but a suspend is not answered.
      t.match(await bhyve.exited, { code: 5 }, `${dialect} ${phase}`)
      t.match(await client.listStored(), ['vm1'], 'listStored counts it')
      t.match(await client.listCheckpoints('vm1'), [{ name: 'suspend', state: 'complete', poweredOff: true }])
      t.same(checkpointFiles(directory).length, 4, 'and nothing else is left')
    }
  }
})

t.test('the manager is killed, and bhyve lives on for a while', async (t) => {
  const world = await start(t, { writeRate: MiB / 2 })
  const { bhyve, client, directory } = world
  const manager = new Manager(t, world, 'saving')
  await manager.reached('saving')
  await manager.kill()
  t.same(await client.listCheckpoints('vm1'), [], 'what bhyve still writes is not a checkpoint yet')
  t.same(await client.destroyAll('vm1'), [])
  await rejection(client.destroyCheckpoint('vm1', 'suspend'))
  await client.pruneCheckpoints('vm1', { keepLast: 0 })
  t.ok(
    tree(directory).some((entry) => entry.endsWith('/intent')),
    'nobody throws it away',
  )
  await bhyve.exited
  t.match(await client.listCheckpoints('vm1'), [{ name: 'suspend', state: 'complete' }])
})

t.test('the manager is killed, and bhyve too', async (t) => {
  const world = await start(t, { writeRate: MiB / 2 })
  const { bhyve, client } = world
  const manager = new Manager(t, world, 'saving')
  await manager.reached('saving')
  await manager.kill()
  process.kill(bhyve.pid, 'SIGKILL')
  await bhyve.exited
  t.match(await client.listCheckpoints('vm1'), [{ state: 'damaged', poweredOff: true, name: /^suspend-/ }])
})

t.test('the manager is killed before it asked: nothing is left of it', async (t) => {
  const root = scratch(t)
  const runDirectory = scratch(t)
  const socket = path.join(runDirectory, 'vm1')
  // A full backlog: the stage is made, and nobody takes the connection.
  const listener = native.simulator.listenStream(socket, 1)
  if (isFailure(listener)) return t.fail('no listener')
  t.teardown(() => native.close(listener))
  for (let taken = native.connectStream(socket); !isFailure(taken); taken = native.connectStream(socket)) {
    const descriptor = taken
    t.teardown(() => native.close(descriptor))
  }
  const manager = new Manager(t, { bhyve: { runDirectory }, root }, 'never')
  const directory = path.join(root, 'vm1')
  await until(() => tree(directory).some((entry) => entry.endsWith('/intent')), 'the intent')
  await manager.kill()
  t.same(await createClient({ runDirectory, checkpointDirectory: root }).listCheckpoints('vm1'), [])
  t.same(checkpointFiles(directory), [])
})

t.test(
  'a suspend that failed behind its dead manager goes once the VM has served another request',
  async (t) => {
    const world = await start(t, { writeRate: MiB / 2 })
    const { bhyve, client, directory } = world
    const orphans = (): string[] => tree(directory).filter((entry) => entry.endsWith('/intent'))
    // A request that bhyve refuses without a word leaves the VM running and nothing written.
    const failing = await SimulatedBhyve.start({
      vm: 'vm1',
      memoryBytes: MiB,
      fault: { at: 'device', kind: 'hang' },
    })
    t.teardown(() => failing.stop())
    const manager = new Manager(t, { bhyve: failing, root: world.root }, 'saving')
    await manager.reached('saving')
    await manager.kill()
    t.equal(orphans().length, 1)
    await client.createCheckpoint('vm1')
    t.equal(orphans().length, 1, 'another process says nothing about this one')
    // The orphan is told to be of the VM that serves us now: as if its suspend had failed.
    const record = path.join(directory, path.dirname(orphans()[0]!), 'peer')
    const { pid } = bhyve
    const { startedAt } = native.processStatus(pid) as { startedAt: string }
    const written = JSON.parse(fs.readFileSync(record, 'utf8')) as object
    fs.writeFileSync(record, JSON.stringify({ ...written, pid, startedAt }))
    await client.createCheckpoint('vm1')
    t.same(orphans(), [])
    t.match(await client.listCheckpoints('vm1'), [{ name: 'checkpoint', state: 'complete' }])
  },
)
