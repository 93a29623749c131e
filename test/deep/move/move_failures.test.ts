/** Moves that are refused, fail or are cancelled: the VM stays on its host, or is resumed there. */
import { duplexPair } from 'node:stream'
import t from 'tap'
import { CheckpointError } from 'bhyve-checkpoint'
import { hostNow } from '../../../dist/checkpoint/host.js'
import { inlinePool } from '../../support/index.js'
import { assertOneHost } from '../../support/move_invariant.js'
import { Move } from '../../support/moving.js'

t.setTimeout(120_000)

t.test('move: what prevents it is found before the VM is suspended', async (t) => {
  const host = () => ({ ...hostNow(), cpuModel: 'Another CPU' })
  const move = new Move(t, { b: { host } })
  const blockersOf = async (options: object = {}): Promise<string[]> => {
    const { report } = await move.run({ args: move.args, ...options })
    if (!(report instanceof CheckpointError)) throw report as Error
    t.match(report, { code: 'ERR_MOVE_REFUSED', vm: 'vm1' })
    t.match(report.message, /Nothing was changed$/)
    return (report.blockers ?? []).map(({ code }) => code)
  }
  t.strictSame(await blockersOf(), ['no-state', 'cpu-differs'], 'the VM does not run')
  await move.a.begin(move.args)
  t.strictSame(await blockersOf(), ['cpu-differs'])
  const anyCpu = true
  const elsewhere = move.args.map((word) => word.replace(move.disk, `${move.disk}2`))
  t.strictSame(await blockersOf({ anyCpu, args: elsewhere }), ['disks-missing'])
  await move.b.begin(move.args)
  t.strictSame(await blockersOf({ anyCpu }), ['already-running'])
  await move.b.client.createCheckpoint('vm1', { name: 'suspend' })
  await move.b.killAll()
  t.strictSame(await blockersOf({ anyCpu }), ['name-taken'])
  t.match((await move.run({ anyCpu, args: move.args, name: 'other' })).report, {
    outcome: 'started',
    name: 'other',
  })
})

t.test('move: a VM of another generation of bhyve is refused', async (t) => {
  const move = new Move(t)
  const client = move.b.clientOf('path')
  await move.suspended()
  const { report } = await move.run(
    {},
    { to: Object.assign(Object.create(move.b) as typeof move.b, { client }) },
  )
  t.match(report, { code: 'ERR_MOVE_REFUSED', blockers: [{ code: 'generation-differs', side: 'there' }] })
})

t.test('move: a bhyve that does not start gives the VM back', async (t) => {
  const move = new Move(t)
  move.b.writeBhyve('echo no such device >&2; exit 4')
  await move.a.begin(move.args)
  const { report, received } = await move.run({ args: move.args })
  t.match(report, { code: 'ERR_MOVE_FAILED', vmState: 'running', message: /no such device/ })
  t.match(received, { outcome: 'not-started' })
  t.strictSame(move.running, ['a'], 'the VM runs here again')
  t.strictSame([move.a.moveOf(), move.b.moveOf()], [undefined, undefined], 'and nothing is left there')
  await move.a.client.suspend('vm1', { recordArguments: move.args })
  const { report: second } = await move.run()
  t.match(second, { code: 'ERR_MOVE_FAILED', vmState: 'off', message: /did not start on host 'b'/ })
  t.strictSame(await move.restorable(), ['a'])
})

t.test('move: a VM that somebody has started there by hand is not given back', async (t) => {
  const move = new Move(t)
  await move.suspended()
  await move.run({}, { fault: { from: 'sender', index: 4, what: 'cut' } })
  await move.b.begin(move.args)
  t.match((await move.run()).report, { code: 'ERR_MOVE_IN_DOUBT', message: /already running/ })
  t.strictSame([move.a.moveOf(), await move.restorable()], ['moved-to', []])
  await move.b.killAll()
  t.match((await move.run()).report, { outcome: 'resolved' })
})

t.test('move: a guest that has run there and ended is not given back', async (t) => {
  const move = new Move(t)
  // The socket of a bhyve that has ended: nothing was ever able to connect to it.
  const socket = `${move.b.runDirectory}/ended`
  const listens = `require('net').createServer().listen('${socket}', () => process.kill(process.pid, 'SIGKILL'))`
  move.b.writeBhyve(
    `'${process.execPath}' -e "${listens}"; mv '${socket}' '${move.b.runDirectory}/vm1'; exit 1`,
  )
  await move.suspended()
  const { report } = await move.run()
  t.match(report, { code: 'ERR_MOVE_FAILED', vmState: 'off', message: /has ended since/ })
  t.strictSame([move.a.moveOf(), move.b.moveOf()], ['moved', 'released'])
})

t.test('move: a full disk there leaves the VM here, and nothing there', async (t) => {
  const full = (name: string): Promise<unknown> | undefined =>
    name === 'reserveSpaceUnder'
      ? Promise.reject(new CheckpointError('ERR_NO_SPACE', 'The disk is full'))
      : undefined
  const move = new Move(t, { b: { pool: () => inlinePool(full) } })
  await move.a.begin(move.args)
  const { report } = await move.run({ args: move.args })
  t.match(report, { code: 'ERR_MOVE_FAILED', vmState: 'running', message: /disk is full/ })
  t.strictSame(move.running, ['a'])
  t.strictSame(await move.b.client.listCheckpoints('vm1'), [])
})

t.test('move: a commit that fails is withdrawn, and the VM runs here', async (t) => {
  for (const isUndone of [true, false]) {
    const failing = (name: string): Promise<unknown> | undefined =>
      name === 'commitMove' || (name === 'withdrawMove' && !isUndone)
        ? Promise.reject(new CheckpointError('ERR_SYSTEM', 'EIO'))
        : undefined
    const move = new Move(t, { a: { pool: () => inlinePool(failing) } })
    await move.suspended()
    const { report } = await move.run()
    const code = isUndone ? 'ERR_MOVE_FAILED' : 'ERR_MOVE_IN_DOUBT'
    t.match(report, { code }, isUndone ? 'withdrawn' : 'not withdrawn')
    t.strictSame([move.a.moveOf(), move.b.moveOf()], [undefined, isUndone ? undefined : 'arriving'])
    await assertOneHost(move, code)
  }
})

t.test('move: a cancel before the commit resumes the VM here', async (t) => {
  const move = new Move(t)
  await move.a.begin(move.args)
  const controller = new AbortController()
  const { report } = await move.run({
    args: move.args,
    signal: controller.signal,
    onProgress: ({ phase }) => (phase === 'publishing' ? controller.abort() : undefined),
  })
  t.match(report, { code: 'ABORT_ERR', begun: true })
  t.strictSame(move.running, ['a'])
  t.strictSame(await move.b.client.listCheckpoints('vm1'), [])
})

t.test('move: a program that is not bhyve-checkpoint is reported', async (t) => {
  const move = new Move(t)
  await move.suspended()
  for (const output of ['bash: bhyve-checkpoint: command not found\n', 'bhyve']) {
    const [near, far] = duplexPair()
    far.end(output)
    far.resume()
    const moved = move.a.client.moveVirtualMachine('vm1', { host: 'b', connect: () => near })
    await t.rejects(moved, { code: 'ERR_MOVE_FAILED', message: new RegExp(output.trim()) })
    t.strictSame(await move.restorable(), ['a'])
  }
  const [near, far] = duplexPair()
  far.resume()
  const silent = move.a.client.moveVirtualMachine('vm1', {
    host: 'b',
    connect: () => near,
    silenceTimeout: 50,
  })
  await t.rejects(silent, { code: 'ERR_MOVE_FAILED', message: /nothing arrived for 50 ms/ })
})
