/** Moves that send disks and fail, with stand-ins for the ZFS of both hosts. */
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { CheckpointError, zfsDisks } from 'bhyve-checkpoint'
import { Move } from '../../support/moving.js'
import { moveWithDisks, StandInHost, volumesOf } from '../../support/zfs_hosts.js'

t.setTimeout(600_000)

interface World {
  move: Move
  a: StandInHost
  b: StandInHost
  args: string[]
}

function world(t: Test, names = ['one']): World {
  const move = new Move(t)
  const [a, b] = [new StandInHost(move.root, 'a'), new StandInHost(move.root, 'b')]
  a.use(t)
  return { move, a, b, args: volumesOf(a, names) }
}

/** The move fails, the VM runs on the first host again, and nothing is left on the other one. */
async function fails(
  t: Test,
  { move, b, args }: World,
  message: RegExp,
  change?: (text: string) => string,
): Promise<void> {
  const { report } = await moveWithDisks(move, b.path, () => ({ args }), change)
  t.match(report, { code: 'ERR_MOVE_FAILED', vmState: 'running', message })
  t.strictSame(move.running, ['a'])
  t.strictSame(b.names, [])
  t.strictSame(await move.b.client.listCheckpoints('vm1'), [])
  await move.a.client.destroyAll('vm1')
  await move.a.client.idle()
}

t.test('move: a failure while the disks are sent gives the VM back', async (t) => {
  const one = world(t, ['one', 'two'])
  const { move, a, b, args } = one
  await move.a.begin(args)
  a.change({ failing: 'send' })
  await fails(t, one, /'zfs send tank\/one@.*I\/O error/)
  a.change({ failing: 'other' })
  await fails(t, one, /of another snapshot than the manifest records/)
  a.change({ failing: undefined })
  b.change({ failing: 'receive', failingName: 'tank/two' })
  await fails(t, one, /'zfs receive -u tank\/two\..*out of space/)
  b.change({ failing: undefined })
  const unplanned = (text: string): string => text.replace(/("type":"disk".*"dataset":"tank\/)two"/, '$1six"')
  await fails(t, one, /sent dataset 'tank\/six', which the plan does not name/, unplanned)
  t.strictSame(a.names, ['tank/one', 'tank/two'], 'the snapshots are removed with their checkpoints')
})

t.test('move: a receiver that was killed leaves a dataset, which the next move removes', async (t) => {
  const { move, b, args } = world(t, ['one', 'two'])
  await move.a.begin(args)
  b.change({ failing: 'kill', failingName: 'tank/two' })
  const { report } = await moveWithDisks(move, b.path, () => ({ args }))
  t.match(report, { code: 'ERR_MOVE_FAILED', vmState: 'running' })
  t.equal(move.b.moveOf(), 'arriving')
  t.ok(b.names.includes('tank/one'), b.names.join())
  b.change({ failing: undefined })
  b.set('tank/one', { '#data': 'left' })
  const next = await moveWithDisks(move, b.path, () => ({ args }))
  t.match(next.report, {
    outcome: 'started',
    warnings: [{ code: 'checkpoint-replaced' }, { code: 'copy-left' }],
  })
  t.equal(b.state.datasets['tank/one']?.['#data'], 'disk one')
})

t.test('move: after the commit the datasets stay there', async (t) => {
  const { move, b, args } = world(t)
  await move.a.begin(args)
  move.b.writeBhyve('exit 4')
  const { report } = await moveWithDisks(move, b.path, () => ({ args }))
  t.match(report, { code: 'ERR_MOVE_FAILED', vmState: 'running', message: /did not start on host 'b'/ })
  t.strictSame(b.names, ['tank/one'])
  const next = (await moveWithDisks(move, b.path, () => ({ args, name: 'next' }))).report
  const message = /which an earlier move has received: if nothing needs it, rename or destroy it/
  t.match(next, { code: 'ERR_MOVE_REFUSED', blockers: [{ code: 'dataset-exists', message }] })
  t.strictSame(move.running, ['a'])
})

t.test('move: a suspended VM is sent with its snapshots, if it has some', async (t) => {
  const { move, a, b, args } = world(t)
  await move.a.begin(args)
  await move.a.client.suspend('vm1', { recordArguments: args })
  const without = (await moveWithDisks(move, b.path, () => ({}))).report
  const message = /the suspended state has no snapshots of its disks/
  t.match(without, { code: 'ERR_MOVE_REFUSED', blockers: [{ code: 'disks-not-sendable', message }] })
  await move.a.client.restore('vm1', 'suspend', { bhyve: move.a.bhyve })
  await move.a.client.suspend('vm1', { recordArguments: args, disks: [zfsDisks({ args })] })
  b.change({ failing: 'receive', failingName: 'tank/one' })
  const failed = (await moveWithDisks(move, b.path, () => ({}))).report
  t.match(failed, {
    code: 'ERR_MOVE_REFUSED',
    vmState: 'off',
    message: /out of space.*still suspended on this host/,
  })
  b.change({ failing: undefined })
  t.match((await moveWithDisks(move, b.path, () => ({}))).report, { outcome: 'started' })
  t.equal(b.state.datasets['tank/one']?.['#data'], 'disk one')
  t.ok(a.names.includes('tank/one'))
})

t.test('move: what prevents the disks from being sent is found before the suspend', async (t) => {
  const { move, a, b, args } = world(t)
  await move.a.begin(args)
  const plan = (await moveWithDisks(move, b.path, () => ({ args, dryRun: true }))).report
  const disks = [{ dataset: 'tank/one', bytes: 8 }]
  t.match(plan, { outcome: 'planned', blockers: [], disks })
  const blocked = async (
    code: string,
    message: RegExp,
    { given = args, change }: { given?: string[]; change?: (text: string) => string } = {},
  ): Promise<void> => {
    const { report } = await moveWithDisks(move, b.path, () => ({ args: given }), change)
    const known = report instanceof CheckpointError ? report : undefined
    t.match(known, { code: 'ERR_MOVE_REFUSED', blockers: [{ code, message }] }, code)
    t.equal(known?.blockers?.length, 1, code)
  }
  b.volume('tank/one', 'of somebody')
  await blocked('dataset-exists', /'tank\/one' exists on this host: if nothing needs it/)
  b.set('tank/one', undefined)
  a.set('tank/one', { '#encryption': 'aes-256-gcm' })
  await blocked('disks-not-sendable', /'tank\/one' is encrypted \(aes-256-gcm\)/)
  a.set('tank/one', { '#encryption': 'off' })
  const image = path.join(move.root, 'image')
  fs.writeFileSync(image, '')
  const given = args.map((word) => word.replace('/dev/zvol/tank/one', image))
  await blocked('disks-not-sendable', /only disks on ZFS are sent.*image/, { given })
  const older = (text: string): string => text.replace('"receivesDisks"', '"receivesNone."')
  await blocked('disks-not-receivable', /the release of this library on the other host/, { change: older })
  t.strictSame(move.running, ['a'])
  t.strictSame([a.names, b.names], [['tank/one'], []])
})
