/** A move that sends the disks, with two real pools. For the receiver, a script gives its pool the name of the other one. */
import crypto from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { CheckpointError } from 'bhyve-checkpoint'
import { Move } from '../../support/moving.js'
import { moveWithDisks } from '../../support/zfs_hosts.js'
import { command, commandWhenIdle, exists, get, needsPools, pool } from '../../support/zfs_pool.js'
import { diskIn } from '../../support/zfs_vm.js'

t.setTimeout(300_000)

interface Pool {
  name: string
  root: string
}

/**
 * The PATH of a host that calls the pool `there` as the other host calls `here`. `before`: shell commands that run
 * before a `zfs receive`, for example to fail.
 */
function pathFor(directory: string, here: Pool, there: Pool, before = ''): string {
  const { PATH = '' } = process.env
  const bin = fs.mkdtempSync(path.join(directory, 'bin-'))
  const [to, back] = [
    `s#${here.name}#${there.name}#g`,
    `s#${there.root}#${here.root}#g; s#${there.name}#${here.name}#g`,
  ]
  const script = `#!/bin/sh
PATH='${PATH}':/sbin:/usr/sbin
for word; do shift; set -- "$@" "$(printf %s "$word" | sed '${to}')"; done
if [ "$1" = receive ]; then
  ${before}
  exec zfs "$@"
fi
out=$(zfs "$@"); status=$?
[ -z "$out" ] || printf '%s\\n' "$out" | sed '${back}'
exit $status
`
  fs.writeFileSync(path.join(bin, 'zfs'), script, { mode: 0o755 })
  return `${bin}:${PATH}`
}

/** A VM with an image of 4 MiB in a dataset of its own. */
async function machine(t: Test): Promise<{ move: Move; a: Pool; b: Pool; args: string[]; disk: Buffer }> {
  const move = new Move(t)
  const [a, b] = [await pool(t), await pool(t)]
  const { image } = diskIn(`${a.name}/vm1`, a.root)
  const disk = crypto.randomBytes(4 * 1024 * 1024)
  fs.writeFileSync(image, disk)
  const args = ['-c2', '-m4M', '-s0,hostbridge', '-s', `3,virtio-blk,${image}`, '-s31,lpc', 'vm1']
  await move.a.begin(args)
  return { move, a, b, args, disk }
}

t.test('move: a dataset arrives, is mounted, and its snapshot can be used', needsPools(), async (t) => {
  const { move, a, b, args, disk } = await machine(t)
  const receiver = pathFor(move.root, a, b)
  const sent: { bytes: number; total: number | undefined }[] = []
  const { report, errors } = await moveWithDisks(move, receiver, () => ({
    args,
    onProgress: ({ phase, bytes, totalBytes: total }) => {
      if (phase === 'sending') sent.push({ bytes, total })
    },
  }))
  t.equal(errors, '')
  t.match(report, { outcome: 'started', disks: [{ dataset: `${a.name}/vm1` }] })
  t.ok((sent.at(-1)?.bytes ?? 0) > disk.length, JSON.stringify(sent.at(-1)))
  t.ok((sent.at(-1)?.total ?? 0) >= disk.length)
  t.strictSame(move.running, ['b'])
  t.ok(fs.readFileSync(path.join(b.root, 'vm1/disk.img')).equals(disk))
  const snapshot = `${b.name}/vm1@${String(move.b.manifest('suspend').id)}`
  t.equal(get(snapshot, 'bhyve-checkpoint:directory'), move.b.directory)
  t.equal(get(`${b.name}/vm1`, 'bhyve-checkpoint:move'), (report as { id: string }).id)
  t.ok(exists(`${a.name}/vm1`), 'the dataset of the sender stays')

  const { PATH } = process.env
  process.env.PATH = receiver
  t.teardown(() => void (process.env.PATH = PATH))
  t.match(await move.b.client.verifyCheckpoint('vm1', 'suspend'), { ok: true })
  await move.b.killAll()
  const options = { args, as: 'vm2', disks: 'clone', bhyve: move.b.bhyve } as const
  t.strictSame((await move.b.client.planRestore('vm1', 'suspend', options)).blockers, [])
  await move.b.client.destroyCheckpoint('vm1', 'suspend')
  await move.b.client.idle()
  t.notOk(exists(snapshot), 'the snapshot is removed with its checkpoint')
  t.ok(exists(`${b.name}/vm1`))
})

t.test(
  'move: a failure before the commit leaves no dataset there, and the next move succeeds',
  needsPools(),
  async (t) => {
    const { move, a, b, args, disk } = await machine(t)
    const failed = async (
      receiver: string,
      options: (cut: () => void) => object,
      error: object,
    ): Promise<void> => {
      const { report } = await moveWithDisks(move, receiver, (cut) => ({ args, ...options(cut) }))
      t.match(report, { code: 'ERR_MOVE_FAILED', vmState: 'running', ...error })
      t.strictSame(move.running, ['a'])
      t.strictSame(command(`zfs list -H -o name -r ${b.name}`), b.name, 'nothing is left')
      t.strictSame(await move.b.client.listCheckpoints('vm1'), [])
      await move.a.client.destroyAll('vm1')
    }
    const cutAfter = (cut: () => void): object => ({
      onProgress: ({ phase, bytes }: { phase: string; bytes: number }) => {
        if (phase === 'sending' && bytes > disk.length / 2) cut()
      },
    })
    await failed(pathFor(move.root, a, b), cutAfter, {})
    const failing = pathFor(move.root, a, b, 'head -c 1000000 | zfs "$@"; exit 1')
    await failed(failing, () => ({}), { message: /The command 'zfs receive -u .*' failed/ })
    const existing = pathFor(move.root, a, b, `zfs create ${b.name}/vm1`)
    const { report } = await moveWithDisks(move, existing, () => ({ args }))
    t.match(report, { code: 'ERR_MOVE_FAILED', vmState: 'running', message: /rename.*exists/ })
    t.equal(
      command(`zfs list -H -o name -r ${b.name}`),
      `${b.name}\n${b.name}/vm1`,
      "somebody's dataset stays",
    )
    const refused = (await moveWithDisks(move, pathFor(move.root, a, b), () => ({ args }))).report
    t.match(refused, { code: 'ERR_MOVE_REFUSED', blockers: [{ code: 'dataset-exists', side: 'there' }] })
    await commandWhenIdle(`zfs destroy ${b.name}/vm1`)
    await move.a.client.destroyAll('vm1')
    const killing = pathFor(move.root, a, b, 'kill -KILL $PPID')
    const killed = (await moveWithDisks(move, killing, () => ({ args }))).report
    t.match(killed, { code: 'ERR_MOVE_FAILED', vmState: 'running' })
    t.equal(move.b.moveOf(), 'arriving')
    const last = (await moveWithDisks(move, pathFor(move.root, a, b), () => ({ args }))).report
    if (last instanceof CheckpointError) throw last
    t.match(last, {
      outcome: 'started',
      warnings: [{ code: 'checkpoint-replaced' }, { code: 'copy-left' }],
    })
    t.ok(fs.readFileSync(path.join(b.root, 'vm1/disk.img')).equals(disk))
  },
)
