/** Tests of a suspend whose manager is killed. The next call of any process must find the complete state. */
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

t.test('suspend: the next call publishes the state after the manager is killed in any phase', async (t) => {
  // Only while bhyve saves does the dialect matter: afterwards bhyve has exited.
  const cases = [
    { phase: 'saving', dialects: ['path', 'descriptor', 'reply'] },
    { phase: 'checking', dialects: ['path'] },
    { phase: 'syncing', dialects: ['descriptor'] },
    { phase: 'publishing', dialects: ['reply'] },
  ] as const
  for (const { phase, dialects } of cases) {
    for (const dialect of dialects) {
      const world = await start(t, { dialect, writeRate: phase === 'saving' ? 4 * MiB : undefined })
      const { bhyve, client, directory } = world
      const manager = new Manager(t, world, phase)
      await manager.reached(phase)
      await manager.kill()
      // In `reply`, bhyve dies if it cannot send its reply. It sends no reply to a suspend, so it exits with status 5.
      t.match(await bhyve.exited, { code: 5 }, `${dialect} ${phase}`)
      t.match(await client.listStored(), ['vm1'], 'listStored returns the VM')
      t.match(await client.listCheckpoints('vm1'), [{ name: 'suspend', state: 'complete', poweredOff: true }])
      t.same(checkpointFiles(directory).length, 4, 'no other file is left')
    }
  }
})

t.test('suspend: no call removes the stage of a killed manager while bhyve still writes', async (t) => {
  const world = await start(t, { fault: { at: 'memory', kind: 'hang' } })
  const { bhyve, client, directory } = world
  const manager = new Manager(t, world, 'saving')
  await manager.reached('saving')
  await manager.kill()
  t.same(await client.listCheckpoints('vm1'), [], 'an unfinished checkpoint is not listed')
  t.same(await client.destroyAll('vm1'), [])
  await rejection(client.destroyCheckpoint('vm1', 'suspend'))
  await client.pruneCheckpoints('vm1', { keepLast: 0 })
  t.ok(
    tree(directory).some((entry) => entry.endsWith('/intent')),
    'the stage is kept',
  )
  await bhyve.clearFault()
  await bhyve.exited
  t.match(await client.listCheckpoints('vm1'), [{ name: 'suspend', state: 'complete' }])
})

t.test('suspend: after both the manager and bhyve are killed, the files are kept as damaged', async (t) => {
  const world = await start(t, { writeRate: MiB / 2 })
  const { bhyve, client } = world
  const manager = new Manager(t, world, 'saving')
  await manager.reached('saving')
  await manager.kill()
  process.kill(bhyve.pid, 'SIGKILL')
  await bhyve.exited
  t.match(await client.listCheckpoints('vm1'), [{ state: 'damaged', poweredOff: true, name: /^suspend-/ }])
})

t.test('suspend: nothing is left after the manager is killed before it sends the request', async (t) => {
  const root = scratch(t)
  const runDirectory = scratch(t)
  const socket = path.join(runDirectory, 'vm1')
  // The backlog is full: the stage is created, but the connection is not accepted.
  const listener = native.simulator.listenStream(socket, 1)
  if (isFailure(listener)) return t.fail('the socket cannot be created')
  t.teardown(() => native.close(listener))
  for (let taken = native.connectStream(socket); !isFailure(taken); taken = native.connectStream(socket)) {
    const descriptor = taken
    t.teardown(() => native.close(descriptor))
  }
  const manager = new Manager(t, { bhyve: { runDirectory }, root }, 'never')
  const directory = path.join(root, 'vm1')
  await until(() => tree(directory).some((entry) => entry.endsWith('/intent')), 'the intent record exists')
  await manager.kill()
  t.same(await createClient({ runDirectory, checkpointDirectory: root }).listCheckpoints('vm1'), [])
  t.same(checkpointFiles(directory), [])
})

t.test(
  'suspend: the stage of a killed manager is removed when bhyve has finished another request',
  async (t) => {
    const world = await start(t, { writeRate: MiB / 2 })
    const { bhyve, client, directory } = world
    const orphans = (): string[] => tree(directory).filter((entry) => entry.endsWith('/intent'))
    // This bhyve never finishes the request of the killed manager.
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
    t.equal(orphans().length, 1, 'a request to another bhyve process proves nothing about this one')
    // Change the record of the orphan to the bhyve that handles our requests, as if its suspend had failed.
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
