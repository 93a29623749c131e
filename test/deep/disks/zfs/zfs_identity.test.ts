/** Only the snapshots of a checkpoint are removed or put back, whatever the manifest claims. */
import { execSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import type { DiskOwner, DiskRecord } from '../../../../dist/base/disk_types.js'
import type { ZfsRecord } from '../../../../dist/disks/zfs/record.js'
import { rejection, scratch } from '../../../support/index.js'
import { command, commandWhenIdle, exists, get, needsPools, pool } from '../../../support/zfs_pool.js'
import { capture, diskIn, named, never, owner, plan, provider, replaceZfs } from '../../../support/zfs_vm.js'

const zfs = needsPools()
const back = (record: DiskRecord, id: string, of: DiskOwner): Promise<readonly string[]> =>
  provider.rollback(record, { id, signal: never }, of)

void t.test('a snapshot that was made again under the same name is another one', zfs, async (t) => {
  const { name, root } = await pool(t)
  diskIn(`${name}/vm1`, root)
  const of = owner('/checkpoints/vm1')
  const record = await capture(of, named(`${name}/vm1`))
  const snapshot = `${name}/vm1@${of.id}`
  command(`zfs release bhyve-checkpoint ${snapshot}`)
  command(`zfs destroy ${snapshot}`)
  command(
    `zfs snapshot -o bhyve-checkpoint:vm=vm1 -o bhyve-checkpoint:id=${of.id} -o bhyve-checkpoint:directory=${of.directory} ${snapshot}`,
  )
  t.same(await provider.missing(record, of), [snapshot])
  await provider.remove(record, of)
  t.ok(exists(snapshot), 'it is not removed')
  const error = await rejection(provider.rollback(record, { id: 'r1', signal: never }, of))
  t.match(error, { code: 'ERR_CHECKPOINT_DAMAGED', message: /is not the one that was taken/ })
  t.ok(exists(`${name}/vm1`))
})

void t.test('a snapshot whose hold cannot be released is not forgotten', zfs, async (t) => {
  const { name, root } = await pool(t)
  diskIn(`${name}/vm1`, root)
  const of = owner('/checkpoints/vm1')
  const record = await capture(of, named(`${name}/vm1`))
  const restore = replaceZfs(t, scratch(t), `if [ "$1" = release ]; then exit 1; fi\nexec "$ZFS" "$@"`)
  t.match(await rejection(provider.remove(record, of)), { code: 'ERR_SYSTEM', message: /zfs release/ })
  restore()
  t.equal(get(`${name}/vm1@${of.id}`, 'defer_destroy'), 'off')
  await provider.remove(record, of)
  t.notOk(exists(`${name}/vm1@${of.id}`))
})

void t.test('a copied checkpoint directory, or another VM, removes nothing', zfs, async (t) => {
  const { name, root } = await pool(t)
  diskIn(`${name}/vm1`, root)
  const of = owner('/checkpoints/vm1')
  const record = await capture(of, named(`${name}/vm1`))
  const planned: ZfsRecord = { ...record, datasets: record.datasets.map(({ guid: _, ...rest }) => rest) }
  for (const other of [
    { ...of, directory: '/backup/vm1' },
    { ...of, vm: 'vm2' },
  ])
    for (const one of [record, planned]) await provider.remove(one, other)
  t.ok(exists(`${name}/vm1@${of.id}`))
  await provider.remove(planned, of)
  t.notOk(exists(`${name}/vm1@${of.id}`))
})

void t.test('a received copy of the snapshot with its guid and properties is not removed', zfs, async (t) => {
  const { name, root } = await pool(t)
  diskIn(`${name}/vm1`, root)
  const of = owner('/checkpoints/vm1')
  const record = await capture(of, named(`${name}/vm1`))
  const snapshot = `${name}/vm1@${of.id}`
  const stream = path.join(scratch(t), 'stream')
  execSync(`zfs send -p ${snapshot} > ${stream} && zfs receive -u ${name}/copy < ${stream}`)
  const copy = `${name}/copy@${of.id}`
  t.equal(get(copy, 'guid'), get(snapshot, 'guid'))
  await provider.remove(record, of)
  t.notOk(exists(snapshot))
  t.ok(exists(copy))
  await provider.remove(record, of)
  t.ok(exists(copy), 'not by the second call either')
})

void t.test('a hold of another program and a clone in use delay the removal', zfs, async (t) => {
  const { name, root } = await pool(t)
  diskIn(`${name}/vm1`, root)
  const of = owner('/checkpoints/vm1')
  const record = await capture(of, named(`${name}/vm1`))
  const snapshot = `${name}/vm1@${of.id}`
  command(`zfs hold backup ${snapshot}`)
  command(`zfs clone ${snapshot} ${name}/clone`)
  await provider.remove(record, of)
  await provider.remove(record, of)
  t.equal(get(snapshot, 'defer_destroy'), 'on')
  command(`zfs release backup ${snapshot}`)
  t.ok(exists(snapshot), 'the clone needs it')
  await commandWhenIdle(`zfs destroy ${name}/clone`)
  t.notOk(exists(snapshot))
})

void t.test('a snapshot is found after its dataset was renamed', zfs, async (t) => {
  const { name, root } = await pool(t)
  diskIn(`${name}/vm1`, root)
  const of = owner('/checkpoints/vm1')
  const record = await capture(of, named(`${name}/vm1`))
  command(`zfs unmount ${name}/vm1`)
  await commandWhenIdle(`zfs rename ${name}/vm1 ${name}/renamed`)
  t.same(await provider.missing(record, of), [])
  const error = await rejection(provider.rollback(record, { id: 'r1', signal: never }, of))
  t.match(error.message, /vm1' of VM 'vm1' does not exist/)
  await provider.remove(record, of)
  t.notOk(exists(`${name}/renamed@${of.id}`))
})

void t.test(
  'snapshots in a pool that is not imported count neither as missing nor as removed',
  zfs,
  async (t) => {
    const { name, root } = await pool(t)
    diskIn(`${name}/vm1`, root)
    const of = owner('/checkpoints/vm1')
    const record = await capture(of, named(`${name}/vm1`))
    command(`zpool export ${name}`)
    const exported = { message: new RegExp(`pool '${name}' is not imported`) }
    t.match(await rejection(provider.missing(record, of)), exported)
    t.match(await rejection(provider.remove(record, of)), exported)
    t.match(await rejection(provider.rollback(record, { id: 'r1', signal: never }, of)), exported)
    command(`zpool import -d ${path.dirname(root)} ${name}`)
    t.same(await provider.missing(record, of), [])
    await provider.remove(record, of)
    t.notOk(exists(`${name}/vm1@${of.id}`))
  },
)

void t.test(
  'a dataset that was destroyed: its snapshot is missing, and remove is no error',
  zfs,
  async (t) => {
    const { name, root } = await pool(t)
    diskIn(`${name}/vm1`, root)
    const of = owner('/checkpoints/vm1')
    const record = await capture(of, named(`${name}/vm1`))
    command(`zfs release bhyve-checkpoint ${name}/vm1@${of.id}`)
    await commandWhenIdle(`zfs destroy -r ${name}/vm1`)
    t.same(await provider.missing(record, of), [`${name}/vm1@${of.id}`])
    await provider.remove(record, of)
  },
)

void t.test('a command that fails does not show that a snapshot or dataset is gone', zfs, async (t) => {
  const { name, root } = await pool(t)
  diskIn(`${name}/vm1`, root)
  const of = owner('/checkpoints/vm1')
  const record = await capture(of, named(`${name}/vm1`))
  const broken = 'echo "cannot open /dev/zfs: too many open files" >&2; exit 1'
  const failing = { message: /too many open files/ }
  const from = (words: string): (() => void) =>
    replaceZfs(
      t,
      scratch(t),
      `case "$1" in ${words}) : > "$BIN/broken";; esac\nif [ -e "$BIN/broken" ]; then ${broken}; fi\nexec "$ZFS" "$@"`,
    )
  let restore = from('destroy')
  t.match(await rejection(provider.remove(record, of)), failing)
  restore()
  t.ok(exists(`${name}/vm1@${of.id}`))
  restore = replaceZfs(t, scratch(t), `if [ "$1" = get ]; then ${broken}; fi\nexec "$ZFS" "$@"`)
  t.match(await rejection(provider.shared(record, of)), failing)
  t.match(await rejection(provider.missing(record, of)), failing)
  t.match(await rejection(back(record, 'r1', of)), failing)
  restore()
  await provider.remove(record, of)
  t.notOk(exists(`${name}/vm1@${of.id}`))
})

void t.test('a malformed record is refused by every call', async (t) => {
  const of = owner('/checkpoints/vm1', 'vm1', 'id-1')
  const good = { dataset: 'tank/vm1', named: true, guid: '7', files: [] }
  const disk = { path: '/x', snapshot: 'tank/vm1@id-1' }
  const record = (change: object, disks: unknown = [disk]): DiskRecord =>
    ({ kind: 'zfs', disks, datasets: [{ ...good, ...change }] }) as unknown as DiskRecord
  const records = [
    record({ dataset: '-r' }),
    record({ dataset: 'tank/vm1@other' }),
    record({ dataset: 'tank/../vm1' }),
    record({ dataset: 'tank/vm1\n' }),
    record({ dataset: 5 }),
    record({ guid: 7 }),
    record({ guid: '0' }),
    record({ named: 'yes' }),
    record({ files: [{ path: '/x', file: '../../etc/passwd' }] }),
    record({ files: [{ path: '/x', file: '/etc/passwd' }] }),
    record({ files: 'x' }),
    record({}, [{ path: '/x', snapshot: 'tank/other@id-1' }]),
    record({}, []),
    record({ files: [{ path: '/y', file: 'y' }] }),
    { ...record({}), datasets: [good, { ...good, dataset: 'tank/vm2' }] },
    { ...record({}), kind: 'file' },
    { ...record({}), datasets: [good, good] },
    { ...record({}), datasets: [null] },
    { ...record({}), datasets: {} },
  ]
  for (const one of records) {
    const calls = [
      provider.remove(one, of),
      provider.missing(one, of),
      provider.storedBytes(one, of),
      provider.shared(one, of),
      provider.rollback(one, { id: 'r1', signal: never }, of),
      provider.clone(one, { as: 'vm2', signal: never }, of),
      provider.clonePaths(one, { as: 'vm2' }, of),
      provider.removeClones(one, { as: 'vm2' }, of),
    ]
    for (const call of calls)
      t.match(await rejection(call), { code: 'ERR_CHECKPOINT_DAMAGED' }, JSON.stringify(one))
  }
  const strange = { ...of, id: 'a@b' }
  t.match(await rejection(provider.remove(record({}), strange)), { code: 'ERR_CHECKPOINT_DAMAGED' })
})

void t.test('a record that names another dataset for a snapshot puts nothing back', zfs, async (t) => {
  const { name, root } = await pool(t)
  diskIn(`${name}/vm1`, root)
  const victim = diskIn(`${name}/victim`, root, 'precious')
  const of = owner('/checkpoints/vm1')
  const record = await capture(of, named(`${name}/vm1`))
  const [entry] = record.datasets
  const hostile: ZfsRecord = {
    ...record,
    disks: [{ path: victim.image, snapshot: `${name}/victim@${of.id}` }],
    datasets: [{ ...entry!, dataset: `${name}/victim` }],
  }
  const damaged = { code: 'ERR_CHECKPOINT_DAMAGED' }
  t.match(await rejection(provider.rollback(hostile, { id: 'r1', signal: never }, of)), damaged)
  t.match(await rejection(provider.clone(hostile, { as: 'x', signal: never }, of)), damaged)
  const withoutGuid: ZfsRecord = { ...record, datasets: [{ dataset: `${name}/vm1`, named: true, files: [] }] }
  t.match(await rejection(provider.rollback(withoutGuid, { id: 'r1', signal: never }, of)), damaged)
  t.equal(fs.readFileSync(victim.image, 'utf8'), 'precious')
  t.notOk(exists(`${name}/victim.r1`))
})

void t.test('inherited properties do not make a snapshot one of a checkpoint', zfs, async (t) => {
  const { name, root } = await pool(t)
  diskIn(`${name}/vm1`, root)
  const of = owner('/checkpoints/vm1')
  const planned = await plan(of, named(`${name}/vm1`))
  for (const value of ['vm=vm1', `id=${of.id}`, `directory=${of.directory}`])
    command(`zfs set bhyve-checkpoint:${value} ${name}/vm1`)
  command(`zfs snapshot ${name}/vm1@${of.id}`)
  await provider.remove(planned, of)
  t.ok(exists(`${name}/vm1@${of.id}`))
})
