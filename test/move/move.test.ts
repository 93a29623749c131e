/** A move from one host to another: what each side has, knows and refuses. */
import t from 'tap'
import { Move } from '../support/moving.js'

t.test('move: a running VM runs on the other host, and only there', async (t) => {
  const move = new Move(t)
  await move.a.begin(move.args)
  const { report, received } = await move.run({ args: move.args })
  t.match(report, { vm: 'vm1', name: 'suspend', outcome: 'started', blockers: [], pid: move.b.starts[0] })
  t.ok('offlineMs' in report && (report.offlineMs ?? 0) > 0)
  t.match(received, { vm: 'vm1', outcome: 'started' })
  t.strictSame(move.running, ['b'])
  t.strictSame([move.a.moveOf(), move.b.moveOf()], ['moved', 'released'])
  t.strictSame(await move.restorable(), [])
  t.equal(await move.a.client.suspendedCheckpoint('vm1'), undefined)
  t.match(await move.a.client.listCheckpoints('vm1'), [{ move: { state: 'moved', host: 'b' } }])
})
