/**
 * How long the guest is held for the capture of its disks: a clone of an image of 1 GiB on XFS, and a snapshot of an
 * idle ZFS pool. The rival is the same checkpoint with an `onFrozen` that does nothing. Needs Linux, root, xfsprogs and
 * zfs-fuse. What is missing is named and not measured.
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { Worker } from 'node:worker_threads'
import { createClient, fileDisks, zfsDisks } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { GiB, median, MiB } from './support/harness.mjs'
import { writeImage } from './support/images.mjs'

const vm = 'vm1'
const memoryBytes = 64 * MiB
const mostHeldMs = 50

export async function measure({ report, quick, scratch }) {
  const rounds = quick ? 5 : 30
  const imageBytes = quick ? 64 * MiB : GiB
  const setting = { scratch, rounds, imageBytes }
  await show(report, `clone of ${imageBytes / MiB} MiB on XFS`, 'clone', () => onXfs(setting))
  await show(report, 'snapshot of an idle ZFS pool', 'snapshot', () => onZfs(setting))
}

async function show(report, what, key, run) {
  const found = await run()
  if (found === undefined) return
  const { disks, nothing, missed } = found
  report.keep(key, { memoryBytes, ...found })
  report.table(
    `${what}; a guest with ${memoryBytes / MiB} MiB of RAM; medians in ms`,
    ['', 'held', 'frozen'],
    [
      ['disks', median(disks.heldMs), median(disks.frozenMs)],
      ['onFrozen does nothing', median(nothing.heldMs), median(nothing.frozenMs)],
    ],
  )
  console.log(`not captured: ${missed}`)
  report.atMost(`held for a ${what}, in ms`, median(disks.heldMs), mostHeldMs)
}

async function onXfs({ scratch, rounds, imageBytes }) {
  if (isMissing('mkfs.xfs', 'xfsprogs')) return undefined
  const device = scratch.at('xfs.img')
  const mount = scratch.makeDirectory('xfs')
  execFileSync('truncate', ['-s', String(imageBytes * 2 + 4 * GiB), device])
  execFileSync('mkfs.xfs', ['-q', '-m', 'reflink=1', device])
  execFileSync('mount', ['-o', 'loop', device, mount])
  try {
    const image = `${mount}/vm1.img`
    writeImage(image, imageBytes, 0.1, 64)
    execFileSync('sync')
    return await hold({ checkpointDirectory: `${mount}/checkpoints`, rounds }, fileDisks({ files: [image] }))
  } finally {
    execFileSync('umount', [mount])
  }
}

async function onZfs({ scratch, rounds }) {
  if (isMissing('zfs-fuse', 'zfs-fuse')) return undefined
  const daemon = await startDaemon()
  const pool = `bench${process.pid}`
  const device = scratch.at('pool.img')
  execFileSync('truncate', ['-s', '1G', device])
  execFileSync('zpool', ['create', '-m', scratch.makeDirectory('zfs'), pool, device], { stdio: 'ignore' })
  try {
    execFileSync('zfs', ['create', `${pool}/vm1`])
    writeImage(scratch.at('zfs', 'vm1', 'vm1.img'), 64 * MiB, 0.1, 64)
    execFileSync('sync')
    const selection = zfsDisks({ datasets: [`${pool}/vm1`] })
    return await hold({ checkpointDirectory: scratch.at('checkpoints'), rounds }, selection)
  } finally {
    await destroyed(pool)
    daemon?.kill()
  }
}

/** Undefined if one is running already. */
async function startDaemon() {
  const answers = () => spawnSync('zpool', ['list'], { stdio: 'ignore' }).status === 0
  if (answers()) return undefined
  const daemon = spawn('zfs-fuse', ['--no-daemon', '--no-kstat-mount', '-m', '64'], { stdio: 'ignore' })
  while (!answers()) await new Promise((resolve) => setTimeout(resolve, 100))
  return daemon
}

/** The pool may be busy for a moment after its last use. */
async function destroyed(pool) {
  for (let attempt = 0; attempt < 100; attempt++) {
    if (spawnSync('zpool', ['destroy', '-f', pool], { stdio: 'ignore' }).status === 0) return
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
}

function isMissing(program, packageName) {
  const isThere = spawnSync('which', [program]).status === 0 && process.getuid() === 0
  if (!isThere) console.log(`not measured: needs root and ${program} (apt-get install ${packageName})`)
  return !isThere
}

/** Alternates, so that noise of the machine affects both. */
async function hold({ checkpointDirectory, rounds }, selection) {
  const bhyve = await SimulatedBhyve.start({ vm, memoryBytes })
  const watch = new StoppedTime(bhyve.pid)
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory })
  const found = { disks: { heldMs: [], frozenMs: [] }, nothing: { heldMs: [], frozenMs: [] }, missed: 0 }
  try {
    for (let round = 0; round < rounds; round++) {
      for (const [key, options] of [
        ['disks', { disks: [selection] }],
        ['nothing', { onFrozen: () => undefined }],
      ]) {
        await watch.heldMs()
        const checkpoint = await client.createCheckpoint(vm, { name: key, ...options }).catch(() => undefined)
        const heldMs = await watch.heldMs()
        if (checkpoint === undefined) found.missed++
        else found[key].heldMs.push(heldMs) && found[key].frozenMs.push(checkpoint.frozenMs)
      }
      await client.idle()
    }
    await client.destroyAll(vm)
    return found
  } finally {
    watch.end()
    await bhyve.stop()
  }
}

/** How long a process was stopped, seen from outside. */
class StoppedTime {
  #control = new Int32Array(new SharedArrayBuffer(8))
  #worker

  constructor(pid) {
    const workerData = { pid, control: this.#control }
    this.#worker = new Worker(new URL('support/stopped_time.mjs', import.meta.url), { workerData })
  }

  heldMs() {
    const reported = new Promise((resolve) => this.#worker.once('message', resolve))
    Atomics.store(this.#control, 1, 1)
    return reported
  }

  end() {
    Atomics.store(this.#control, 0, 1)
  }
}
