/** What zfs-fuse cannot show: several snapshots per call, volumes, and pools that cannot be written. */
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { rejection, scratch } from '../../../support/index.js'
import { capture, derived, named, never, owner, plan, provider } from '../../../support/zfs_vm.js'

interface State {
  pools: Record<string, string>
  readonly: 'on' | 'off'
  guid: number
  datasets: Record<string, Record<string, string>>
  calls: string[]
}

const volume = { '#type': 'volume', volsize: '1048576' }

/** Puts the stand-in before the real commands. Returns functions that read and change its state. */
function standIn(
  t: Test,
  names: readonly string[],
): { read: () => State; change: (by: Partial<State>) => void } {
  const directory = scratch(t)
  const file = path.join(directory, 'state')
  const script = path.resolve(import.meta.dirname, '../../../support/zfs-stand-in.mjs')
  for (const program of ['zfs', 'zpool']) {
    const line = `exec '${process.execPath}' '${script}' '${file}' ${program} "$@"`
    fs.writeFileSync(path.join(directory, program), `#!/bin/sh\n${line}\n`, { mode: 0o755 })
  }
  const { PATH = '' } = process.env
  process.env.PATH = `${directory}:${PATH}`
  t.teardown(() => void (process.env.PATH = PATH))
  const read = (): State => JSON.parse(fs.readFileSync(file, 'utf8')) as State
  const write = (state: State): void => fs.writeFileSync(file, JSON.stringify(state))
  const datasets = Object.fromEntries(
    names.map((name, index) => [name, { ...volume, '#guid': String(index + 100) }]),
  )
  write({ pools: { tank: 'ONLINE', fast: 'DEGRADED' }, readonly: 'off', guid: 1000, datasets, calls: [] })
  return { read, change: (by) => write({ ...read(), ...by }) }
}

void t.test('all snapshots of a pool are taken by one command', async (t) => {
  const { read } = standIn(t, ['tank/a', 'tank/b', 'fast/c'])
  const of = owner('/checkpoints/vm1', 'vm1', 'id1')
  const record = await capture(of, named('tank/a', 'tank/b', 'fast/c'))
  const taken = read().calls.filter((call) => call.startsWith('zfs snapshot'))
  t.same(taken.map((call) => call.split(' ').filter((word) => word.includes('@'))).sort(), [
    ['fast/c@id1'],
    ['tank/a@id1', 'tank/b@id1'],
  ])
  t.same(
    record.disks.map((disk) => disk.path),
    ['/dev/zvol/tank/a', '/dev/zvol/tank/b', '/dev/zvol/fast/c'],
  )
  t.equal(await provider.storedBytes(record, of), 3 * 512)
  await provider.remove(record, of)
  t.equal(Object.keys(read().datasets).filter((name) => name.includes('@')).length, 0)
})

void t.test('a volume is found by its device, or by a link to it', async (t) => {
  standIn(t, ['tank/a', 'tank/b'])
  const link = path.join(scratch(t), 'disk')
  fs.symlinkSync('/dev/zvol/tank/b', link)
  const planned = await plan(owner('/c', 'vm1', 'id1'), derived('vm1', '/dev/zvol/tank/a', link))
  t.same(planned.disks, [
    { path: '/dev/zvol/tank/a', snapshot: 'tank/a@id1' },
    { path: link, snapshot: 'tank/b@id1' },
  ])
  const error = await rejection(plan(owner('/c'), derived('vm1', '/dev/zvol/tank/a@b')))
  t.match(error, { code: 'ERR_INVALID_OPTION' })
})

void t.test('a volume with children is not only for its VM', async (t) => {
  standIn(t, ['tank/a', 'tank/a/child'])
  const error = await rejection(plan(owner('/c'), derived('vm1', '/dev/zvol/tank/a')))
  t.match(error.message, /has child datasets, such as 'tank\/a\/child'/)
})

void t.test('a pool that is suspended, absent or read-only cannot take snapshots', async (t) => {
  const { change } = standIn(t, ['tank/a'])
  const planning = (): Promise<Error> => rejection(plan(owner('/c'), named('tank/a')))
  change({ pools: { tank: 'SUSPENDED' } })
  t.match((await planning()).message, /pool 'tank' is SUSPENDED/)
  change({ pools: {} })
  t.match((await planning()).message, /pool 'tank' is not imported/)
  change({ pools: { tank: 'ONLINE' }, readonly: 'on' })
  t.match((await planning()).message, /pool 'tank' is read-only/)
})

void t.test('a volume is put back and copied without any mount', async (t) => {
  const { read, change } = standIn(t, ['tank/a'])
  const { datasets } = read()
  change({ datasets: { 'tank/a': { ...datasets['tank/a'], refreservation: '1048576', 'site:x': 'y' } } })
  const of = owner('/checkpoints/vm1', 'vm1', 'id2')
  const record = await capture(of, derived('vm1', '/dev/zvol/tank/a'))
  change({ calls: [] })
  t.same(await provider.shared(record, of, ['/dev/zvol/tank/a']), [])
  t.match(await provider.shared(record, of, []), [/volume 'tank\/a' is not a disk in the bhyve arguments/])
  change({ calls: [] })
  t.same(await provider.rollback(record, { id: 'r1', signal: never }, of), ['tank/a.r1'])
  t.notMatch(read().calls.join('\n'), /zfs (un)?mount|volsize=/)
  const after = read().datasets
  t.match(after['tank/a'], { '#origin': 'tank/a.r1@id2', refreservation: '1048576', 'site:x': 'y' })
  t.match(after['tank/a.r1'], {
    'bhyve-checkpoint:rollback': 'r1 no - - 1048576 done',
    refreservation: 'none',
  })
  const copies = await provider.clone(record, { as: 'vm2', signal: never }, of)
  t.same([...copies], [['/dev/zvol/tank/a', '/dev/zvol/tank/a-vm2']])
  await provider.removeClones(record, { as: 'vm2' }, of)
  t.notOk(read().datasets['tank/a-vm2'])
})
