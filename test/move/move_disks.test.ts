/** A move that sends the disks, with stand-ins for the ZFS of both hosts. */
import t from 'tap'
import { Move } from '../support/moving.js'
import { moveWithDisks, StandInHost, volumesOf } from '../support/zfs_hosts.js'

t.test('move: the disks arrive with the VM, and those of the sender stay', async (t) => {
  const move = new Move(t)
  const [a, b] = [new StandInHost(move.root, 'a'), new StandInHost(move.root, 'b')]
  a.use(t)
  const args = volumesOf(a, ['one'])
  await move.a.begin(args)
  const sent: number[] = []
  const { report, errors } = await moveWithDisks(move, b.path, () => ({
    args,
    onProgress: ({ phase, bytes }) => {
      if (phase === 'sending') sent.push(bytes)
    },
  }))
  t.equal(errors, '')
  t.match(report, { outcome: 'started', disks: [{ dataset: 'tank/one', bytes: 320 }] })
  t.strictSame(sent, [320])
  t.strictSame(move.running, ['b'])
  const id = String(move.b.manifest('suspend').id)
  const names = ['tank/one', `tank/one@${id}`]
  t.strictSame([a.names, b.names], [names, names])
  const { datasets } = b.state
  t.match(datasets['tank/one'], {
    '#data': 'disk one',
    'bhyve-checkpoint:move': (report as { id: string }).id,
  })
  t.match(datasets[`tank/one@${id}`], {
    '#userrefs': '1',
    'bhyve-checkpoint:vm': 'vm1',
    'bhyve-checkpoint:id': id,
    'bhyve-checkpoint:dataset': 'tank/one',
    'bhyve-checkpoint:directory': move.b.directory,
  })
})
