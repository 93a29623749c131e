/** A disk provider that hangs: the VM runs, no call waits for ever, and nothing is left. */
import t from 'tap'
import { manifestIn, recordsIn, world } from '../support/captured_world.js'
import { processState } from '../support/guards.js'
import { rejection, until } from '../support/index.js'

void t.test('a provider that hangs costs freezeTimeout, and its late snapshot is removed', async (t) => {
  const { bhyve, directory, provider, client } = await world(t)
  let end: () => void = () => undefined
  let running = ''
  provider.instead.take = async (_request, signal, copy) => {
    await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()))
    await until(() => processState(bhyve.pid) === 'running', 'the VM runs again')
    running = processState(bhyve.pid)
    await new Promise<void>((resolve) => (end = resolve))
    copy()
  }
  const creating = client.createCheckpoint('vm1', { disks: [provider.selection], freezeTimeout: 100 })
  const error = await rejection(creating)
  t.equal(running, 'running')
  t.match(error, { code: 'ERR_DISKS_NOT_CAPTURED', message: /does not react/, vmState: 'running' })
  t.equal(recordsIn(directory).length, 1, 'the record remains while the provider may make a snapshot')
  await client.listCheckpoints('vm1')
  t.equal(recordsIn(directory).length, 1)
  end()
  await client.idle()
  t.strictSame([provider.ids(), recordsIn(directory)], [[], []])
})

void t.test(
  'a provider whose remove hangs delays no other call for long, and is not called twice',
  async (t) => {
    const { directory, provider, client, create } = await world(t)
    await create('a')
    await create('b')
    let end: () => void = () => undefined
    const hanging = new Promise<void>((resolve) => (end = resolve))
    provider.instead.remove = () => hanging
    const began = performance.now()
    await create('a')
    t.ok(performance.now() - began < 15_000, 'the call resolves')
    for (let call = 0; call < 2; call++)
      t.match(await client.listCheckpoints('vm1'), [{ name: 'b' }, { name: 'a' }])
    t.equal(provider.calls.filter((name) => name === 'remove').length, 1)
    end()
    await client.idle()
    t.strictSame(provider.ids(), [manifestIn(directory, 'a').id, manifestIn(directory, 'b').id].sort())
    t.strictSame(recordsIn(directory), [])
  },
)
