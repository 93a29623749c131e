/** A move from one host to another: what each side has and knows. */
import fs from 'node:fs'
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

  const back = await move.run({}, { from: move.b, to: move.a })
  t.match(back.report, { outcome: 'started' }, 'and back: the copy that stayed here is replaced')
  t.strictSame(move.running, ['a'])
  t.strictSame([move.a.moveOf(), move.b.moveOf()], ['released', 'moved'])
  t.match(
    (await move.run()).report,
    { outcome: 'started' },
    'and away again, with the arguments of the process',
  )
  t.strictSame(move.running, ['b'])
})

t.test('move: a plan changes nothing on both hosts', async (t) => {
  const move = new Move(t)
  await move.a.begin(move.args)
  const { report, received } = await move.run({ args: move.args, dryRun: true })
  t.match(report, { outcome: 'planned', blockers: [] })
  t.match(received, { outcome: 'planned' })
  t.strictSame(move.running, ['a'])
  t.strictSame([fs.existsSync(move.a.directory), fs.existsSync(move.b.directory)], [false, false])
})
