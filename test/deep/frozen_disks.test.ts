/** RAM and disks of one moment: a guest that writes the same number to both shows whether they are. */
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { type CheckpointError, createClient, fileDisks, zfsDisks } from 'bhyve-checkpoint'
import { SimulatedBhyve, simulatedBhyve, type SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { scratch, until } from '../support/index.js'
import { command, commandWhenIdle, needsPools, pool } from '../support/zfs_pool.js'

const MiB = 1024 * 1024
const rounds = Number(process.env.FROZEN_ROUNDS ?? '8')
/** Sizes of guest RAM in bytes. */
const sizes = (process.env.FROZEN_SIZES ?? '1,4,24').split(',').map((mebibytes) => Number(mebibytes) * MiB)

interface World {
  bhyve: SimulatedBhyve
  client: ReturnType<typeof createClient>
  disk: string
  copy: string
}

async function world(
  t: Test,
  options: Partial<SimulatorOptions> = {},
  diskDirectory?: string,
): Promise<World> {
  // A directory on a file system with block cloning makes the hold shorter.
  const root = fs.mkdtempSync(path.join(process.env.FROZEN_DIRECTORY ?? scratch(t), 'frozen-'))
  t.teardown(() => fs.rmSync(root, { recursive: true }))
  const disk = path.join(diskDirectory ?? root, 'disk.img')
  fs.writeFileSync(disk, Buffer.alloc(4 * MiB))
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', disks: [disk], ...options })
  t.teardown(() => bhyve.stop())
  await until(() => numberIn(disk, 0) > 0n, 'the guest writes')
  const client = createClient({
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: path.join(root, 'checkpoints'),
  })
  return { bhyve, client, disk, copy: path.join(root, 'copy.img') }
}

function numberIn(file: string, offset: number): bigint {
  const descriptor = fs.openSync(file, 'r')
  const bytes = Buffer.alloc(8)
  fs.readSync(descriptor, bytes, 0, 8, offset)
  fs.closeSync(descriptor)
  return bytes.readBigUInt64LE()
}

const clone = (from: string, to: string): Promise<void> =>
  fs.promises.copyFile(from, to, fs.constants.COPYFILE_FICLONE)

void t.test(
  'createCheckpoint: every published checkpoint agrees with the disk that onFrozen copied',
  async (t) => {
    for (const memoryBytes of sizes) {
      const { client, disk, copy } = await world(t, { memoryBytes })
      let captured = 0
      for (let round = 0; round < rounds; round++) {
        const result = await client
          .createCheckpoint('vm1', { fsync: false, digest: false, onFrozen: () => clone(disk, copy) })
          .catch((error: unknown) => error as CheckpointError)
        if (result instanceof Error) {
          t.match(result, { code: 'ERR_DISKS_NOT_CAPTURED' })
          continue
        }
        captured++
        t.equal(
          numberIn(result.path, 64),
          numberIn(copy, 0),
          `${String(memoryBytes)} bytes, round ${String(round)}`,
        )
      }
      t.comment(`${String(memoryBytes)} bytes: ${String(captured)} of ${String(rounds)} captured`)
      if (memoryBytes > 4 * MiB) t.ok(captured > rounds / 2, 'most are captured')
    }
  },
)

void t.test('fileDisks: every published checkpoint agrees with its snapshot', async (t) => {
  for (const memoryBytes of sizes) {
    const { client, disk } = await world(t, { memoryBytes })
    const selection = fileDisks({ files: [disk], allowCopy: process.env.FROZEN_DIRECTORY === undefined })
    let captured = 0
    for (let round = 0; round < rounds; round++) {
      const result = await client
        .createCheckpoint('vm1', { name: 'a', fsync: false, digest: false, disks: [selection] })
        .catch((error: unknown) => error as CheckpointError)
      if (result instanceof Error) {
        t.match(result, { code: 'ERR_DISKS_NOT_CAPTURED' })
        continue
      }
      captured++
      const [{ snapshot } = { snapshot: '' }] = result.disks ?? []
      const what = `${String(memoryBytes)} bytes, round ${String(round)}`
      t.equal(numberIn(result.path, 64), numberIn(snapshot, 0), what)
    }
    t.comment(`${String(memoryBytes)} bytes: ${String(captured)} of ${String(rounds)} captured`)
    if (memoryBytes > 4 * MiB) t.ok(captured > rounds / 2, 'most are captured')
    await client.destroyAll('vm1')
  }
})

void t.test('zfsDisks: every published checkpoint agrees with its snapshot', needsPools(), async (t) => {
  for (const memoryBytes of process.env.FROZEN_SIZES === undefined ? sizes.slice(-1) : sizes) {
    const { name, root } = await pool(t)
    command(`zfs create ${name}/vm1`)
    const { client, bhyve } = await world(t, { memoryBytes }, path.join(root, 'vm1'))
    let captured = 0
    for (let round = 0; round < rounds; round++) {
      const disks = [zfsDisks({ datasets: [`${name}/vm1`] })]
      const result = await client
        .createCheckpoint('vm1', { name: 'a', fsync: false, digest: false, disks })
        .catch((error: unknown) => error as CheckpointError)
      if (result instanceof Error) {
        t.match(result, { code: 'ERR_DISKS_NOT_CAPTURED' })
        continue
      }
      captured++
      command(`zfs clone ${result.disks?.[0]?.snapshot ?? ''} ${name}/look`)
      const found = numberIn(path.join(root, 'look/disk.img'), 0)
      t.equal(numberIn(result.path, 64), found, `${String(memoryBytes)} bytes, round ${String(round)}`)
      await commandWhenIdle(`zfs destroy ${name}/look`)
    }
    t.comment(`${String(memoryBytes)} bytes: ${String(captured)} of ${String(rounds)} captured`)
    if (memoryBytes > 4 * MiB) t.ok(captured > rounds / 2, 'most are captured')
    await client.destroyAll('vm1')
    t.equal(command(`zfs list -H -t snapshot -o name -r ${name}`), '')
    await bhyve.stop()
  }
})

void t.test('a disk that is copied after the call does not agree', async (t) => {
  const { client, disk, copy } = await world(t, { memoryBytes: MiB })
  let differing = 0
  for (let round = 0; round < 5; round++) {
    const checkpoint = await client.createCheckpoint('vm1')
    await clone(disk, copy)
    if (numberIn(checkpoint.path, 64) !== numberIn(copy, 0)) differing++
  }
  t.ok(differing > 0, `${String(differing)} of 5 differ`)
})

void t.test('restore: the guest runs on with the captured disk, but not with a newer one', async (t) => {
  const { bhyve, client, disk, copy } = await world(t, { memoryBytes: 8 * MiB, writeRate: 16 * MiB })
  await client.createCheckpoint('vm1', { onFrozen: () => clone(disk, copy) })
  const { runDirectory } = bhyve
  await bhyve.stop()
  fs.mkdirSync(runDirectory, { recursive: true })
  t.teardown(() => fs.rmSync(path.dirname(runDirectory), { recursive: true, force: true }))
  const args =
    '-c 2 -m 8M -s 0,hostbridge -s 2,ahci-cd,/cd -s 3,virtio-blk,/d -s 4,virtio-net,tap0 -s 31,lpc'.split(' ')
  const restore = (): ReturnType<typeof client.restore> =>
    client.restore('vm1', 'checkpoint', {
      args: [...args, '-o', `rundir=${runDirectory}`, 'vm1'],
      bhyve: simulatedBhyve,
      again: true,
      env: { PATH: process.env.PATH ?? '', SIMULATED_BHYVE_OPTIONS: JSON.stringify({ disks: [disk] }) },
    })
  const error = await restore().catch((failed: unknown) => failed as CheckpointError)
  t.match(error, { code: 'ERR_RESTORE_FAILED', message: /RAM and disks are of different moments/ })
  fs.copyFileSync(copy, disk)
  const { pid } = await restore()
  t.teardown(() => process.kill(pid, 'SIGKILL'))
  await until(() => numberIn(disk, 0) > numberIn(copy, 0), 'the guest continues to count')
})
