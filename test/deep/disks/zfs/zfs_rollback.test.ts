/** Disks are put back by rename and clone: nothing is destroyed, and a rollback can be finished from every state. */
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import type { DiskOwner } from '../../../../dist/base/disk_types.js'
import type { ZfsRecord } from '../../../../dist/disks/zfs/record.js'
import { rejection, runScript, scratch } from '../../../support/index.js'
import { command, commandWhenIdle, exists, get, needsPools, pool } from '../../../support/zfs_pool.js'
import {
  capture,
  derived,
  diskIn,
  named,
  never,
  owner,
  provider,
  replaceZfs,
} from '../../../support/zfs_vm.js'

const zfs = needsPools()
const text = (file: string): string => fs.readFileSync(file, 'utf8')
const back = (record: ZfsRecord, id: string, of: DiskOwner): Promise<readonly string[]> =>
  provider.rollback(record, { id, signal: never }, of)

void t.test('a rollback keeps the present state and all properties of the dataset', zfs, async (t) => {
  const mountpoint = path.join(scratch(t), 'disks')
  const { name } = await pool(t)
  const dataset = `${name}/vm1`
  command(
    `zfs create -o mountpoint=${mountpoint} -o compression=gzip -o quota=100M -o refquota=none ${dataset}`,
  )
  command(`zfs set reservation=1M ${dataset}`)
  command(`zfs set site:owner=me ${dataset}`)
  const image = path.join(mountpoint, 'disk.img')
  fs.writeFileSync(image, 'old')
  const of = owner('/checkpoints/vm1')
  const record = await capture(of, derived('vm1', image))
  fs.writeFileSync(image, 'new')
  t.same(await back(record, 'r1', of), [`${dataset}.r1`])
  t.equal(text(image), 'old')
  const own = ['mountpoint', 'compression', 'quota', 'reservation', 'site:owner', 'canmount', 'mounted']
  t.same(
    own.map((one) => get(dataset, one)),
    [mountpoint, 'gzip', String(100 * 1024 * 1024), String(1024 * 1024), 'me', 'on', 'yes'],
  )
  t.equal(get(`${dataset}.r1`, 'canmount'), 'noauto')
  t.equal(get(`${dataset}.r1`, 'mounted'), 'no')
  t.equal(get(`${dataset}.r1`, 'reservation'), '0')
  t.same(await back(record, 'r1', of), [`${dataset}.r1`], 'the same call again')
  t.equal(text(image), 'old')
  command(`zfs set mountpoint=${mountpoint}-kept ${dataset}.r1`)
  command(`zfs mount ${dataset}.r1`)
  t.equal(text(`${mountpoint}-kept/disk.img`), 'new')
  command(`zfs unmount ${dataset}.r1`)
})

void t.test(
  'any of five checkpoints, in any order: the right bytes, and all five stay valid',
  zfs,
  async (t) => {
    const { name, root } = await pool(t)
    const { image } = diskIn(`${name}/vm1`, root)
    const made: { of: DiskOwner; record: ZfsRecord }[] = []
    const captureNext = async (): Promise<void> => {
      fs.writeFileSync(image, `state ${made.length}`)
      const of = owner('/checkpoints/vm1')
      made.push({ of, record: await capture(of, derived('vm1', image)) })
    }
    for (let count = 0; count < 5; count++) await captureNext()
    for (const [round, index] of [2, 0, 4, 1].entries()) {
      const { of, record } = made[index]!
      await back(record, `r${round}`, of)
      t.equal(text(image), `state ${index}`)
      for (const other of made) t.same(await provider.missing(other.record, other.of), [])
    }
    await captureNext()
    const younger = made[5]!
    await back(made[1]!.record, 'r6', made[1]!.of)
    await back(younger.record, 'r7', younger.of)
    t.equal(text(image), 'state 5')
    for (const { record, of } of made) await provider.remove(record, of)
    t.equal(text(image), 'state 5', 'removing all checkpoints leaves the disks')
  },
)

void t.test('a dataset in use is refused, and nothing is changed', zfs, async (t) => {
  const { name, root } = await pool(t)
  const one = diskIn(`${name}/a`, root)
  const two = diskIn(`${name}/b`, root)
  const of = owner('/checkpoints/vm1')
  const record = await capture(of, derived('vm1', one.image, two.image))
  for (const { image } of [one, two]) fs.writeFileSync(image, 'new')
  const user = spawn('sleep', ['600'], { cwd: two.mountpoint })
  t.teardown(() => user.kill())
  const error = await rejection(back(record, 'r1', of))
  t.match(error, { code: 'ERR_SYSTEM', message: /cannot be put back: .*zfs unmount.* Nothing was changed/s })
  t.match(error, { unchanged: true })
  for (const dataset of ['a', 'b']) {
    t.equal(get(`${name}/${dataset}`, 'mounted'), 'yes')
    t.equal(get(`${name}/${dataset}`, 'bhyve-checkpoint:rollback'), '-')
    t.notOk(exists(`${name}/${dataset}.r1`))
  }
  const ended = new Promise((resolve) => user.once('close', resolve))
  user.kill()
  await ended
  await back(record, 'r1', of)
  t.same(
    [one, two].map(({ image }) => text(image)),
    ['first', 'first'],
  )
})

/** Kills the process that has started it before or after the Nth command that changes something. */
function killAt(t: Test, directory: string, nth: number, when: 'before' | 'after'): () => void {
  return replaceZfs(
    t,
    directory,
    `case "$1" in get|list) exec "$ZFS" "$@";; esac
echo "$1" >> "$BIN/commands"
count=$(wc -l < "$BIN/commands")
if [ "$count" -lt ${nth} ]; then exec "$ZFS" "$@"; fi
${when === 'after' ? '"$ZFS" "$@"' : ''}
kill -KILL $PPID`,
  )
}

/** Resolves with whether the process was killed. */
async function backInProcess(record: ZfsRecord, id: string, of: DiskOwner): Promise<boolean> {
  const { code, signal, stderr } = await runScript(
    'zfs-rollback.mjs',
    [record, of, id].map((one) => JSON.stringify(one)),
  )
  if (signal === null && code !== 0) throw new Error(stderr)
  return signal === 'SIGKILL'
}

void t.test(
  'a rollback of two datasets is finished from every state that a kill can leave',
  zfs,
  async (t) => {
    const directory = scratch(t)
    const { name, root } = await pool(t)
    const disks = [diskIn(`${name}/a`, root), diskIn(`${name}/b`, root)]
    const images = disks.map(({ image }) => image)
    command(`zfs set canmount=on ${name}/a`)
    command(`zfs set refreservation=1M ${name}/a`)
    const of = owner('/checkpoints/vm1')
    const record = await capture(of, derived('vm1', ...images))
    const isKilledAt = async (nth: number, when: 'before' | 'after'): Promise<boolean> => {
      for (const image of images) fs.writeFileSync(image, `present ${nth}`)
      const id = `r${nth}${when}`
      const restore = killAt(t, directory, nth, when)
      const isKilled = await backInProcess(record, id, of)
      restore()
      t.same(await back(record, id, of), [`${name}/a.${id}`, `${name}/b.${id}`])
      t.same(images.map(text), ['first', 'first'], id)
      t.equal(get(`${name}/a`, 'refreservation'), String(1024 * 1024))
      t.equal(get(`${name}/a`, 'canmount'), 'on')
      t.same([get(`${name}/a.${id}`, 'mounted'), get(`${name}/b.${id}`, 'mounted')], ['no', 'no'])
      return isKilled
    }
    t.ok(await isKilledAt(1, 'before'))
    let nth = 1
    while (await isKilledAt(nth, 'after')) nth++
    t.ok(nth > 10, `${nth} kills`)
    t.same(await provider.missing(record, of), [])
  },
)

void t.test('another rollback takes over one that was given up before its rename', zfs, async (t) => {
  const { name, root } = await pool(t)
  const { image } = diskIn(`${name}/vm1`, root)
  const of = owner('/checkpoints/vm1')
  const record = await capture(of, derived('vm1', image))
  const restore = killAt(t, scratch(t), 4, 'before')
  t.ok(await backInProcess(record, 'given-up', of))
  restore()
  t.equal(get(`${name}/vm1`, 'canmount'), 'noauto')
  const unknown = { message: /is not mounted, so its contents are unknown/, unchanged: true }
  t.match(await rejection(back(record, 'r2', of)), unknown)
  command(`zfs mount ${name}/vm1`)
  await back(record, 'r2', of)
  t.equal(get(`${name}/vm1`, 'canmount'), 'on')
  t.equal(text(image), 'first')
  t.notOk(exists(`${name}/vm1.given-up`))
})

void t.test('a dataset that is not mounted stays so, and a name that exists is refused', zfs, async (t) => {
  const { name, root } = await pool(t)
  diskIn(`${name}/vm1`, root)
  const of = owner('/checkpoints/vm1')
  const record = await capture(of, named(`${name}/vm1`))
  command(`zfs create ${name}/vm1.taken`)
  t.match(await rejection(back(record, 'taken', of)), {
    message: /vm1\.taken' exists already/,
    unchanged: true,
  })
  await commandWhenIdle(`zfs unmount ${name}/vm1`)
  await back(record, 'r1', of)
  t.equal(get(`${name}/vm1`, 'mounted'), 'no')
  await commandWhenIdle(`zfs destroy ${name}/vm1`)
  command(`zfs create ${name}/vm1`)
  t.match(await rejection(back(record, 'r1', of)), {
    message: /was created by another program meanwhile/,
    unchanged: undefined,
  })
  t.match(await rejection(back(record, 'a b', of)), { code: 'ERR_INVALID_OPTION', unchanged: true })
  t.match(await rejection(back(record, 'x'.repeat(255), of)), { message: /too long/, unchanged: true })
})

void t.test('an abort before anything was renamed changes nothing', zfs, async (t) => {
  const { name, root } = await pool(t)
  const { image } = diskIn(`${name}/vm1`, root)
  const of = owner('/checkpoints/vm1')
  const record = await capture(of, derived('vm1', image))
  const signal = AbortSignal.abort(new Error('enough'))
  await t.rejects(provider.rollback(record, { id: 'r1', signal }, of), { message: 'enough' })
  t.ok(fs.existsSync(image))
  t.notOk(exists(`${name}/vm1.r1`))
})

const MiB = 1024 * 1024

void t.test('shared: why a rollback would change more than the disks of the VM', zfs, async (t) => {
  const { name, root } = await pool(t)
  const dataset = `${name}/vm1`
  const { image, mountpoint } = diskIn(dataset, root)
  fs.truncateSync(image, MiB)
  const of = owner('/checkpoints/vm1')
  const found = await capture(of, derived('vm1', image))
  const second = owner('/checkpoints/vm1')
  const given = await capture(second, named(dataset))
  const disks = [image]
  const reasons = async (): Promise<(readonly string[])[]> => [
    await provider.shared(found, of, disks),
    await provider.shared(given, second, disks),
  ]
  t.same(await reasons(), [[], []])
  t.same(await provider.shared(found, of), [])
  t.match(await provider.shared(given, second), [/also contains 'disk\.img'/], 'no disk is known')
  t.match(await provider.shared(found, of, []), [/also contains 'disk\.img'/], 'whatever the record has')
  for (const file of ['vm1.conf', 'vm-bhyve.log']) fs.writeFileSync(path.join(mountpoint, file), 'x')
  const other = path.join(mountpoint, 'vm2.img')
  fs.writeFileSync(other, '')
  fs.truncateSync(other, MiB - 1)
  t.same(await reasons(), [[], []], 'small files do not count')
  fs.truncateSync(other, MiB)
  for (const one of await reasons()) t.match(one, [/also contains 'vm2\.img'/])
  const error = await rejection(back(found, 'r1', of))
  t.match(error, { code: 'ERR_RESTORE_BLOCKED', message: /also contains 'vm2\.img'$/ })
  t.match(error, { unchanged: true })
  fs.rmSync(other)
  fs.mkdirSync(other)
  for (const one of await reasons()) t.match(one, [/also contains 'vm2\.img'/], 'a directory counts')
  fs.rmdirSync(other)
  const inside = { ...second, directory: path.join(mountpoint, 'checkpoints') }
  t.match(await provider.shared(given, inside, disks), [/contains the checkpoint directory/])
  const third = owner('/checkpoints/vm2', 'vm2')
  const others = await capture(third, named(dataset))
  for (const one of await reasons()) t.match(one, [/has snapshots of VM 'vm2'/])
  await provider.remove(others, third)
  command(`zfs create ${dataset}/child`)
  for (const one of await reasons()) t.match(one, [/has child datasets/])
  await commandWhenIdle(`zfs destroy ${dataset}/child`)
  await commandWhenIdle(`zfs unmount ${dataset}`)
  for (const one of await reasons()) t.match(one, [/is not mounted/])
})

void t.test('a pool, or a dataset that is gone, is not put back and nothing is changed', zfs, async (t) => {
  const { name } = await pool(t)
  const of = owner('/checkpoints/vm1')
  const whole = await capture(of, named(name))
  t.match(await provider.shared(whole, of, []), [/is a pool, which cannot be renamed/])
  t.match(await rejection(back(whole, 'r1', of)), { code: 'ERR_RESTORE_BLOCKED', unchanged: true })
  command(`zfs create ${name}/vm1`)
  const second = owner('/checkpoints/vm1')
  const record = await capture(second, named(`${name}/vm1`))
  command(`zfs unmount ${name}/vm1`)
  await commandWhenIdle(`zfs rename ${name}/vm1 ${name}/web1`)
  const gone = { message: /does not exist$/, unchanged: true }
  t.match(await rejection(back(record, 'r1', second)), gone)
})

void t.test('a rename that fails withdraws everything', zfs, async (t) => {
  const { name, root } = await pool(t)
  const disks = [diskIn(`${name}/a`, root), diskIn(`${name}/b`, root)]
  const images = disks.map(({ image }) => image)
  const of = owner('/checkpoints/vm1')
  const record = await capture(of, derived('vm1', ...images))
  for (const image of images) fs.writeFileSync(image, 'new')
  const script = `if [ "$1" = rename ]; then echo refused >&2; exit 1; fi\nexec "$ZFS" "$@"`
  const restore = replaceZfs(t, scratch(t), script)
  t.match(await rejection(back(record, 'r1', of)), { message: /refused\. Nothing was/, unchanged: true })
  restore()
  t.same(images.map(text), ['new', 'new'])
  for (const dataset of ['a', 'b']) {
    t.equal(get(`${name}/${dataset}`, 'canmount'), 'on')
    t.equal(get(`${name}/${dataset}`, 'bhyve-checkpoint:rollback'), '-')
  }
  await back(record, 'r2', of)
  t.same(images.map(text), ['first', 'first'])
})

void t.test(
  'a rollback that was killed after the unmount, and then fails, mounts everything again',
  zfs,
  async (t) => {
    const { name, root } = await pool(t)
    const { image } = diskIn(`${name}/vm1`, root)
    const of = owner('/checkpoints/vm1')
    const record = await capture(of, derived('vm1', image))
    const killed = replaceZfs(
      t,
      scratch(t),
      `"$ZFS" "$@"; status=$?; if [ "$1" = unmount ]; then kill -9 $PPID; fi; exit $status`,
    )
    t.ok(await backInProcess(record, 'r1', of), 'killed')
    killed()
    t.equal(get(`${name}/vm1`, 'mounted'), 'no')
    const refusing = replaceZfs(t, scratch(t), `if [ "$1" = rename ]; then exit 1; fi\nexec "$ZFS" "$@"`)
    t.match(await rejection(back(record, 'r1', of)), { unchanged: true })
    refusing()
    t.equal(get(`${name}/vm1`, 'mounted'), 'yes')
    t.equal(get(`${name}/vm1`, 'bhyve-checkpoint:rollback'), '-')
    await back(record, 'r2', of)
    t.equal(text(image), 'first')
  },
)

/** The first commands of the section about undoing. */
function undoCommands(dataset: string): string[] {
  const page = fs.readFileSync(path.join(import.meta.dirname, '../../../../docs/returning.md'), 'utf8')
  const block = /^## Undo\n.*?^```sh\n(.*?)^```/ms.exec(page)?.[1] ?? ''
  return block.trim().replaceAll('tank/vm1', dataset).split('\n')
}

void t.test('the documented commands undo a rollback, whatever the mountpoint', zfs, async (t) => {
  const { name, root } = await pool(t)
  const local = path.join(root, 'elsewhere')
  command(`zfs create -o mountpoint=${local} ${name}/local`)
  const image = path.join(local, 'disk.img')
  fs.writeFileSync(image, 'first')
  for (const [dataset, disk] of [
    [`${name}/local`, image],
    [`${name}/inherited`, diskIn(`${name}/inherited`, root).image],
  ] as const) {
    const of = owner('/checkpoints/vm1')
    const record = await capture(of, derived('vm1', disk))
    fs.writeFileSync(disk, 'present')
    await back(record, 'ID', of)
    t.equal(text(disk), 'first')
    const commands = undoCommands(dataset)
    t.equal(commands.length, 5)
    for (const line of commands) await commandWhenIdle(line)
    t.equal(text(disk), 'present', dataset)
    t.equal(get(`${dataset}.undone`, 'mounted'), 'no')
    command('zfs mount -a')
    t.equal(text(disk), 'present', 'after a start of the host, too')
    t.same([get(dataset, 'mounted'), get(dataset, 'canmount')], ['yes', 'on'])
    await commandWhenIdle(`zfs unmount ${dataset}`)
    t.match(await provider.shared(record, of, [disk]), [/is not mounted/], 'the old rollback does not count')
    t.match(await rejection(back(record, 'ID2', of)), { message: /is not mounted/, unchanged: true })
    command(`zfs mount ${dataset}`)
    await back(record, 'ID2', of)
    t.equal(text(disk), 'first', 'it can be put back again')
    t.equal(get(dataset, 'canmount'), 'on')
  }
})

void t.test('a copy has paths of its own, and only the call that made it removes it', zfs, async (t) => {
  const local = path.join(scratch(t), 'local')
  const { name, root } = await pool(t)
  const one = diskIn(`${name}/a`, root)
  command(`zfs create -o mountpoint=${local} ${name}/b`)
  fs.writeFileSync(path.join(local, 'disk.img'), 'second')
  const of = owner('/checkpoints/vm1')
  const record = await capture(of, derived('vm1', one.image, path.join(local, 'disk.img')))
  fs.writeFileSync(one.image, 'new')
  const wanted = [
    [one.image, `${one.mountpoint}-vm2/disk.img`],
    [path.join(local, 'disk.img'), `${local}-vm2/disk.img`],
  ]
  t.same([...(await provider.clonePaths(record, { as: 'vm2' }, of))], wanted)
  t.notOk(exists(`${name}/a-vm2`))
  const copies = await provider.clone(record, { as: 'vm2', signal: never }, of)
  t.same([...copies], wanted)
  t.same([...copies.values()].map(text), ['first', 'second'])
  const again = await rejection(provider.clone(record, { as: 'vm2', signal: never }, of))
  t.match(again.message, /a-vm2' exists already/)
  const { ZfsProvider } = await import('../../../../dist/disks/zfs/provider.js')
  const { inlinePool } = await import('../../../support/index.js')
  await new ZfsProvider(inlinePool()).removeClones(record, { as: 'vm2' }, of)
  t.ok(exists(`${name}/a-vm2`), 'another client does not remove it')
  await provider.remove(record, of)
  t.same([...copies.values()].map(text), ['first', 'second'], 'removing the checkpoint leaves the copies')
  await provider.removeClones(record, { as: 'vm2' }, of)
  t.same([exists(`${name}/a-vm2`), exists(`${name}/b-vm2`)], [false, false])
  t.notOk(exists(`${name}/a@${of.id}`), 'the last copy lets the snapshot go')
})

void t.test('a copy that fails removes the copies before it, and nothing else', zfs, async (t) => {
  const { name, root } = await pool(t)
  diskIn(`${name}/a`, root)
  diskIn(`${name}/b`, root)
  const of = owner('/checkpoints/vm1')
  const record = await capture(of, named(`${name}/a`, `${name}/b`))
  const restore = replaceZfs(
    t,
    scratch(t),
    `for last; do :; done
if [ "$1" = clone ] && [ "$last" = ${name}/b-vm2 ]; then "$ZFS" create "$last"; echo busy >&2; exit 1; fi
exec "$ZFS" "$@"`,
  )
  t.match(await rejection(provider.clone(record, { as: 'vm2', signal: never }, of)), { message: /busy/ })
  restore()
  t.notOk(exists(`${name}/a-vm2`))
  t.ok(exists(`${name}/b-vm2`), 'a dataset of another program stays')
  t.match(await rejection(provider.clone(record, { as: 'vm 2', signal: never }, of)), {
    code: 'ERR_INVALID_OPTION',
  })
})
