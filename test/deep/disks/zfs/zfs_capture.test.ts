/** Snapshots on real ZFS: what is taken, and what is refused before anything is taken. */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import type { DiskOwner } from '../../../../dist/base/disk_types.js'
import { zfsDisks } from '../../../../dist/disks/selections.js'
import { rejection, scratch, until } from '../../../support/index.js'
import { command, exists, get, needsPools, pool } from '../../../support/zfs_pool.js'
import {
  capture,
  derived,
  diskIn,
  named,
  never,
  owner,
  plan,
  provider,
  replaceZfs,
} from '../../../support/zfs_vm.js'

const zfs = needsPools()

void t.test(
  'a captured dataset has a held snapshot with the properties of its checkpoint',
  zfs,
  async (t) => {
    const { name, root } = await pool(t)
    const { image } = diskIn(`${name}/vm1`, root)
    const of = owner('/checkpoints/vm1')
    const record = await capture(of, derived('vm1', image))
    const snapshot = `${name}/vm1@${of.id}`
    t.same(record.disks, [{ path: image, snapshot }])
    t.match(record.datasets, [{ dataset: `${name}/vm1`, named: false, guid: get(snapshot, 'guid') }])
    t.equal(get(snapshot, 'bhyve-checkpoint:vm'), 'vm1')
    t.equal(get(snapshot, 'bhyve-checkpoint:id'), of.id)
    t.equal(get(snapshot, 'bhyve-checkpoint:directory'), '/checkpoints/vm1')
    t.equal(get(snapshot, 'userrefs'), '1')
    t.same(await provider.missing(record, of), [])
    fs.writeFileSync(image, Buffer.alloc(1024 * 1024, 1))
    t.type(await provider.storedBytes(record, of), 'number')
    await provider.remove(record, of)
    t.notOk(exists(snapshot))
    t.same(await provider.missing(record, of), [snapshot])
    t.equal(await provider.storedBytes(record, of), 0)
    await provider.remove(record, of)
  },
)

void t.test('datasets of two pools, and two of one pool, belong to one checkpoint', zfs, async (t) => {
  const one = await pool(t)
  const other = await pool(t)
  const disks = [
    diskIn(`${one.name}/a`, one.root),
    diskIn(`${one.name}/b`, one.root),
    diskIn(`${other.name}/c`, other.root),
  ]
  const of = owner('/checkpoints/vm1')
  const record = await capture(of, derived('vm1', ...disks.map(({ image }) => image)))
  t.same(
    record.disks.map(({ snapshot }) => exists(snapshot)),
    [true, true, true],
  )
  t.equal(new Set(record.datasets.map(({ guid }) => guid)).size, 3)
  await provider.remove(record, of)
  t.equal(record.disks.filter(({ snapshot }) => exists(snapshot)).length, 0)
})

void t.test('named datasets are captured as they are, together with found ones', zfs, async (t) => {
  const { name, root } = await pool(t)
  const { image } = diskIn(`${name}/vm1`, root)
  const { mountpoint } = diskIn(`${name}/more`, root)
  fs.writeFileSync(path.join(mountpoint, 'notes'), '')
  const of = owner('/checkpoints/vm1')
  const args = ['-s', `3,virtio-blk,${image}`, 'vm1']
  const record = await capture(of, zfsDisks({ datasets: [`${name}/more`], args }))
  t.same(
    record.disks.map((disk) => disk.path),
    [mountpoint, image],
  )
  await provider.remove(record, of)
})

void t.test('a list that fails while another dataset disappears is read again', zfs, async (t) => {
  const { name, root } = await pool(t)
  const { image } = diskIn(`${name}/vm1`, root)
  const failing = (times: number): (() => void) => {
    const counter = path.join(scratch(t), 'count')
    const fails = `echo >> '${counter}'; if [ $(wc -l < '${counter}') -le ${String(times)} ]; then exit 1; fi`
    return replaceZfs(t, scratch(t), `if [ "$2" = -H ] && [ "$3" = -t ]; then ${fails}; fi\nexec "$ZFS" "$@"`)
  }
  const end = failing(2)
  t.match(await plan(owner('/checkpoints/vm1'), derived('vm1', image)), { kind: 'zfs' })
  end()
  failing(3)
  t.match(await rejection(plan(owner('/checkpoints/vm1'), derived('vm1', image))), { code: 'ERR_SYSTEM' })
})

void t.test('a relative path and a link lead to the dataset of the file', zfs, async (t) => {
  const { name, root } = await pool(t)
  const { image } = diskIn(`${name}/vm1`, root)
  const link = path.join(scratch(t), 'link.img')
  fs.symlinkSync(image, link)
  const relative = path.relative(process.cwd(), link)
  const planned = await plan(owner('/checkpoints/vm1'), derived('vm1', relative))
  t.same(planned.datasets, [
    { dataset: `${name}/vm1`, named: false, files: [{ path: link, file: 'disk.img' }] },
  ])
})

void t.test('a found dataset that is not only for the disks of the VM is refused', zfs, async (t) => {
  const { name, root } = await pool(t)
  const dataset = `${name}/vm1`
  const { image, mountpoint } = diskIn(dataset, root)
  const refused = async (directory: string, why: RegExp): Promise<void> => {
    const error = await rejection(plan(owner(directory), derived('vm1', image)))
    t.match(error, { code: 'ERR_INVALID_OPTION', message: why })
    t.match(error.message, `zfsDisks({ datasets: ['${dataset}'] })`)
    t.ok(await plan(owner(directory), named(dataset)), 'named')
  }
  await refused(path.join(mountpoint, 'not', 'yet'), /contains the checkpoint directory/)
  fs.writeFileSync(path.join(mountpoint, 'vm1.conf'), '')
  t.ok(await plan(owner('/checkpoints/vm1'), derived('vm1', image)), 'a small file')
  fs.writeFileSync(path.join(mountpoint, 'vm2.img'), Buffer.alloc(1024 * 1024))
  await refused('/checkpoints/vm1', /also contains 'vm2\.img'/)
  fs.rmSync(path.join(mountpoint, 'vm2.img'))
  command(`zfs create ${dataset}/child`)
  await refused('/checkpoints/vm1', /has child datasets, such as '.*\/child'/)
})

void t.test('disks in subdirectories are found, and what is beside them too', zfs, async (t) => {
  const { name, root } = await pool(t)
  const { mountpoint, image } = diskIn(`${name}/vm1`, root)
  const nested = path.join(mountpoint, 'data', 'deep', 'disk2.img')
  fs.mkdirSync(path.dirname(nested), { recursive: true })
  fs.writeFileSync(nested, '')
  t.ok(await plan(owner('/checkpoints/vm1'), derived('vm1', image, nested)))
  fs.mkdirSync(path.join(mountpoint, 'data', 'other'))
  const error = await rejection(plan(owner('/checkpoints/vm1'), derived('vm1', image, nested)))
  t.match(error.message, /also contains 'data\/other'/)
})

void t.test('what cannot be captured is refused by name', zfs, async (t) => {
  const { name, root } = await pool(t)
  const { image } = diskIn(`${name}/vm1`, root)
  const file = path.join(scratch(t), 'elsewhere.img')
  fs.writeFileSync(file, '')
  const cases = [
    [
      derived('vm1', file),
      /elsewhere\.img' of VM 'vm1' cannot be captured by ZFS: it is not in a mounted ZFS dataset/,
    ],
    [derived('vm1', '/dev/null'), /'\/dev\/null'.* neither a regular file nor a ZFS volume/],
    [derived('vm1', '/absent.img'), /'\/absent\.img'.* cannot be accessed \(ENOENT\)/],
    [derived('vm1', `/dev/zvol/${name}/none`), /volume '.*\/none' of VM 'vm1' does not exist/],
    [derived('vm1'), /contain no writable disk/],
    [zfsDisks({ args: ['-m', 'much', 'vm1'] }), /cannot be found/],
    [named(`${name}/absent`), /'.*\/absent' of VM 'vm1' does not exist/],
    [named(`${name}/vm1@snapshot`), /must contain names of datasets/],
    [named('-r'), /must contain names of datasets/],
    [named('nosuchpool/vm1'), /pool 'nosuchpool' is not imported/],
    [{ kind: 'zfs', datasets: 'x' }, /must be an array of strings/],
  ] as const
  for (const [selection, why] of cases)
    t.match((await rejection(plan(owner('/checkpoints/vm1'), selection))).message, why)
  const of = owner('/checkpoints/vm1')
  command(`zfs snapshot ${name}/vm1@${of.id}`)
  t.match((await rejection(plan(of, derived('vm1', image)))).message, /exists already/)
  const bad = await rejection(plan(owner('/c', 'vm1', 'a b@c'), derived('vm1', image)))
  t.match(bad.message, /cannot be the name of a ZFS snapshot/)
})

void t.test(
  'a dataset is captured once, without its children, and with a name that can grow',
  zfs,
  async (t) => {
    const { name, root } = await pool(t)
    diskIn(`${name}/vm1`, root)
    diskIn(`${name}/vm1/data`, root)
    const refused = async (of: DiskOwner, why: RegExp, ...datasets: string[]): Promise<void> =>
      void t.match(await rejection(plan(of, named(...datasets))), {
        code: 'ERR_INVALID_OPTION',
        message: why,
      })
    const of = owner('/checkpoints/vm1')
    await refused(of, /must not contain a name twice/, `${name}/vm1`, `${name}/vm1`)
    await refused(of, /contains '.*vm1\/data'/, `${name}/vm1`, `${name}/vm1/data`)
    const planned = await plan(of, named(`${name}/vm1`))
    await refused(of, /vm1' is selected twice/, `${name}/vm1`)
    await refused(of, /contains '.*vm1\/data'/, `${name}/vm1/data`)
    await provider.remove(planned, of)
    t.ok(await plan(of, named(`${name}/vm1/data`)), 'what was removed does not count')
    const long = `${name}/${'x'.repeat(180)}`
    command(`zfs create ${long}`)
    await refused(owner('/checkpoints/vm1'), /is too long: its snapshot, or the state/, long)
  },
)

void t.test('a full pool makes take reject with the words of zfs', zfs, async (t) => {
  const { name, root } = await pool(t, 64)
  const { image } = diskIn(`${name}/vm1`, root)
  const descriptor = fs.openSync(image, 'w')
  let probes = 0
  const fill = (to: number): void => {
    for (;;) fs.writeSync(to, Buffer.alloc(1024 * 1024, Math.floor(Math.random() * 256)))
  }
  t.throws(() => fill(descriptor), { code: 'ENOSPC' })
  fs.closeSync(descriptor)
  // What ZFS has only promised to write may turn out smaller.
  const isFull = (): boolean => {
    if (spawnSync('zfs', ['snapshot', `${name}/vm1@probe${String(probes++)}`]).status !== 0) return true
    const more = fs.openSync(image, 'a')
    t.throws(() => fill(more), { code: 'ENOSPC' })
    fs.closeSync(more)
    return false
  }
  await until(isFull, 'the pool is full')
  const of = owner('/checkpoints/vm1')
  const planned = await plan(of, derived('vm1', image))
  await provider.remove(planned, of)
  const error = await rejection(capture(of, derived('vm1', image)))
  t.match(error, { code: 'ERR_SYSTEM', message: /zfs snapshot .* failed: .*out of space/ })
  await provider.remove(planned, of)
  t.notOk(exists(`${name}/vm1@${of.id}`))
})

void t.test('a name that is taken after prepare makes take reject with the words of zfs', zfs, async (t) => {
  const { name, root } = await pool(t)
  diskIn(`${name}/vm1`, root)
  const of = owner('/checkpoints/vm1')
  const prepared = await provider.prepare({
    ...of,
    selection: named(`${name}/vm1`),
    signal: never,
    inherit: 0,
  })
  command(`zfs snapshot ${name}/vm1@${of.id}`)
  const error = await rejection(prepared.take(never))
  t.match(error, {
    code: 'ERR_SYSTEM',
    message: /zfs snapshot .* failed: exit status 1: cannot create snapshot/,
  })
  await provider.remove(prepared.planned, of)
  t.ok(exists(`${name}/vm1@${of.id}`), 'the snapshot of another program stays')
})

void t.test('a planned record removes what take has made, completely or in part', zfs, async (t) => {
  const { name, root } = await pool(t)
  diskIn(`${name}/a`, root)
  diskIn(`${name}/b`, root)
  const of = owner('/checkpoints/vm1')
  const prepared = await provider.prepare({
    ...of,
    selection: named(`${name}/a`, `${name}/b`),
    signal: never,
    inherit: 0,
  })
  await provider.remove(prepared.planned, of)
  await prepared.take(never)
  command(`zfs destroy ${name}/b@${of.id}`)
  await provider.remove(prepared.planned, of)
  t.notOk(exists(`${name}/a@${of.id}`))
})

void t.test('an abort ends the command, and take rejects when the command has ended', zfs, async (t) => {
  const { name, root } = await pool(t)
  diskIn(`${name}/vm1`, root)
  const directory = scratch(t)
  const ended = path.join(directory, 'ended')
  const of = owner('/checkpoints/vm1')
  const inherit = fs.openSync(path.join(directory, 'lock'), 'w')
  t.teardown(() => fs.closeSync(inherit))
  const prepared = await provider.prepare({ ...of, selection: named(`${name}/vm1`), signal: never, inherit })
  const script = `trap 'readlink /proc/self/fd/3 > ${ended}; exit 1' TERM; : > $BIN/started; while :; do sleep 0.01; done`
  replaceZfs(t, directory, script)
  const controller = new AbortController()
  const taken = prepared.take(controller.signal)
  const isStarted = (): boolean =>
    fs.readdirSync(directory, { recursive: true }).some((one) => String(one).endsWith('started'))
  const poll = setInterval(() => {
    if (isStarted()) controller.abort(new Error('enough'))
  }, 5)
  t.teardown(() => clearInterval(poll))
  await t.rejects(taken, { message: 'enough' })
  t.match(
    fs.readFileSync(ended, 'utf8'),
    path.join(directory, 'lock'),
    'it had ended, and it held the descriptor',
  )
})

void t.test('without the command zfs, the message names what is missing', async (t) => {
  const { PATH } = process.env
  t.teardown(() => void (process.env.PATH = PATH))
  const { run } = await import('../../../../dist/disks/zfs/command.js')
  await t.rejects(run('no-such-zfs' as 'zfs', []), {
    code: 'ERR_SYSTEM',
    message: /'no-such-zfs' was not found in PATH/,
  })
})
