/** Which host is the sender of a copy: hosts can have the same name and the same directories. */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { Move } from '../support/moving.js'

const storeId = '.staging/store.id'

t.test('move: another store of the same host name and directory does not drop a copy in doubt', async (t) => {
  const move = new Move(t)
  const template = await move.suspended()
  await move.run({}, { fault: { from: 'sender', index: 4, what: 'cut' } })
  t.strictSame([move.a.moveOf(), move.b.moveOf()], ['moved-to', 'arriving'])
  const first = path.join(move.root, 'first')
  fs.renameSync(move.a.directory, first)
  move.a.take(template)
  const { report } = await move.run()
  t.match(report, { code: 'ERR_MOVE_REFUSED', message: /move-in-doubt \(there\)/ })
  t.strictSame([move.a.moveOf(), move.b.moveOf()], [undefined, 'arriving'])
  move.a.take(first)
  t.match((await move.run()).report, { outcome: 'resolved' })
  t.strictSame(move.running, ['b'])
})

t.test('move: the store keeps its id, and a refused move leaves none', async (t) => {
  const move = new Move(t)
  await move.a.begin(move.args)
  t.match((await move.run({ args: [...move.args.slice(0, -1), 'vm2'] })).report, { code: 'ERR_MOVE_REFUSED' })
  t.notOk(fs.existsSync(move.a.directory))
  await move.a.client.suspend('vm1', { recordArguments: move.args })
  const id = (): string => fs.readFileSync(path.join(move.a.directory, storeId), 'utf8')
  await move.run({}, { fault: { from: 'receiver', index: 1, what: 'cut' } })
  const first = id()
  t.match(first, /^[0-9a-f-]{36}$/)
  t.match((await move.run()).report, { outcome: 'started' })
  t.equal(id(), first)
  await move.a.client.destroyAll('vm1')
  t.notOk(fs.existsSync(move.a.directory), 'removed with the directory')
})

t.test('move: a receiver with the same directory is refused before the suspend', async (t) => {
  const move = new Move(t)
  await move.a.begin(move.args)
  const { checkpointDirectory } = move.b
  fs.rmSync(checkpointDirectory, { recursive: true, force: true })
  fs.mkdirSync(move.a.checkpointDirectory)
  fs.symlinkSync(move.a.checkpointDirectory, checkpointDirectory)
  let isSuspended = false
  const onProgress = (): void => void (isSuspended = true)
  const { report } = await move.run({ args: move.args, onProgress })
  t.match(report, { code: 'ERR_MOVE_REFUSED', blockers: [{ code: 'name-taken', side: 'there' }] })
  t.notOk(isSuspended)
  t.strictSame(move.running, ['a'])
})
