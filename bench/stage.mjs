/**
 * How long the guest is frozen with a memory stage and without, compared with writing the same bytes into a tmpfs with
 * `dd`. The system may keep little data that is not on the disk yet, and in a second run the disk is as slow as a SATA SSD.
 * And how long the copy to the disk takes after bhyve's end, compared with `dd conv=fsync` of the same bytes. The freeze is
 * seen from outside: from the first byte of RAM in the file to the end of bhyve's connection.
 */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { lastEnd } from './support/end_of_file.mjs'
import { GiB, median, MiB, pairedRatio, timed } from './support/harness.mjs'
import { settleDisk } from './support/scratch.mjs'

const dirtyBytes = 64 * MiB
const tmpfs = `/dev/shm/bhyve-checkpoint-bench-${process.pid}`
const dirtyLimit = '/proc/sys/vm/dirty_bytes'
const dirtyRatio = '/proc/sys/vm/dirty_ratio'
/** Only the root group of cgroup version 1 also limits what the system writes later. */
const rateLimit = '/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device'
const limitedBytesPerSecond = 500 * MiB

export async function measure({ report, quick, scratch }) {
  const memoryBytes = quick ? GiB / 4 : 2 * GiB
  const rounds = quick ? 3 : 5
  fs.mkdirSync(tmpfs, { mode: 0o700 })
  try {
    for (const zeroFraction of [0.5, 0]) {
      const guest = await startGuest(scratch, memoryBytes, zeroFraction)
      try {
        await measureCopy(report, scratch, guest, rounds)
        if (zeroFraction === 0) await measureFreezes(report, scratch, guest, rounds)
      } finally {
        await guest.bhyve.stop()
        fs.rmSync(guest.source)
      }
    }
  } finally {
    fs.rmSync(tmpfs, { recursive: true })
  }
}

async function startGuest(scratch, memoryBytes, zeroFraction) {
  const vm = zeroFraction === 0 ? 'random' : 'half'
  const bhyve = await SimulatedBhyve.start({ vm, memoryBytes, zeroFraction })
  const options = {
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: scratch.at('ours'),
    dialect: 'descriptor',
  }
  const onDisk = createClient(options)
  const inMemory = createClient({ ...options, memoryStage: { directory: path.join(tmpfs, 'stage') } })
  const { path: file } = await onDisk.createCheckpoint(vm, { digest: false, sparsify: false, fsync: false })
  const source = path.join(tmpfs, vm)
  // The rival writes only what is stored: the half that is not zero.
  const count = Math.round(((1 - zeroFraction) * memoryBytes) / MiB)
  const dataStart = firstData(file)
  dd(`if=${file}`, `of=${source}`, `skip=${Math.floor(dataStart / MiB)}`, `count=${count}`)
  await onDisk.destroyAll(vm)
  await onDisk.idle()
  return { vm, bhyve, inMemory, onDisk, source, memoryBytes, zeroFraction }
}

/** Where the bytes that are not zero begin. The simulated guest has them in one run. */
function firstData(file) {
  const descriptor = fs.openSync(file)
  const piece = Buffer.alloc(MiB)
  try {
    for (let position = 0; fs.readSync(descriptor, piece, 0, MiB, position) > 0; position += MiB)
      if (piece.some((byte) => byte !== 0)) return position
    return 0
  } finally {
    fs.closeSync(descriptor)
  }
}

async function measureCopy(report, scratch, { vm, inMemory, source, memoryBytes, zeroFraction }, rounds) {
  const found = { oursMs: [], ddMs: [] }
  const theirs = async () => {
    settleDisk()
    const copy = scratch.at('copy')
    found.ddMs.push((await timed(() => dd(`if=${source}`, `of=${copy}`, 'conv=fsync'))).ms)
    fs.rmSync(copy)
  }
  const ours = async () => {
    settleDisk()
    const { stage } = await inMemory.createCheckpoint(vm, { memoryBytes })
    found.oursMs.push(performance.now() - lastEnd())
    if (stage !== 'memory') throw new Error('the checkpoint was written on the disk')
    await inMemory.destroyAll(vm)
    await inMemory.idle()
  }
  // The disk is busy for a while with the blocks that were freed last. In each round, each of the two runs once before the
  // other and once after it, and the sums are compared.
  for (let round = 0; round < rounds; round++) for (const one of [theirs, ours, ours, theirs]) await one()
  const content = zeroFraction === 0 ? 'all random' : 'half zero'
  report.keep(`copy ${content}`, { memoryBytes, ...found })
  const ratio = pairedRatio(sumsOfTwo(found.oursMs), sumsOfTwo(found.ddMs))
  report.table(
    `${memoryBytes / MiB} MiB, ${content}: from bhyve's end to the promise; medians in ms`,
    ['ours', 'dd conv=fsync', 'ratio'],
    [[median(found.oursMs), median(found.ddMs), ratio]],
  )
  report.atMost(`${content}: copy to the disk over dd conv=fsync`, ratio, 1.15)
}

function sumsOfTwo(values) {
  return values.flatMap((value, index) => (index % 2 === 0 ? [value + values[index + 1]] : []))
}

async function measureFreezes(report, scratch, guest, rounds) {
  const measureFreeze = (disk) => () => measureFreezeOn(disk, { report, scratch, guest, rounds })
  await throttled([dirtyBytesLimit()], measureFreeze('the disk'))
  await throttled([dirtyBytesLimit(), diskLimit(scratch.path)], measureFreeze('a disk of 500 MiB/s'))
}

async function measureFreezeOn(disk, { report, scratch, guest, rounds }) {
  const { vm, inMemory, onDisk, source, memoryBytes } = guest
  const found = { memoryMs: [], diskMs: [], ddMs: [] }
  for (let round = 0; round < rounds; round++) {
    const copy = path.join(tmpfs, 'copy')
    found.ddMs.push((await timed(() => dd(`if=${source}`, `of=${copy}`))).ms)
    fs.rmSync(copy)
    found.memoryMs.push(await frozenMs(inMemory, vm, memoryBytes, path.join(tmpfs, 'stage/.memory-stage')))
    found.diskMs.push(await frozenMs(onDisk, vm, memoryBytes, scratch.at('ours', vm, '.staging')))
  }
  report.keep(`freeze, ${disk}`, { memoryBytes, dirtyBytes, ...found })
  const toDd = pairedRatio(found.memoryMs, found.ddMs)
  const toDisk = pairedRatio(found.diskMs, found.memoryMs)
  report.table(
    `freeze of ${memoryBytes / MiB} MiB with vm.dirty_bytes at ${dirtyBytes / MiB} MiB; medians in ms`,
    ['memory stage', 'dd into tmpfs', 'ratio', disk, 'disk over memory'],
    [[median(found.memoryMs), median(found.ddMs), toDd, median(found.diskMs), toDisk]],
  )
  report.atMost(`${disk}: freeze with the memory stage over dd into a tmpfs`, toDd, 1.3)
  report.atLeast(`${disk}: freeze without the memory stage over that with it`, toDisk, 3)
}

async function frozenMs(client, vm, memoryBytes, directory) {
  await client.destroyAll(vm)
  await client.idle()
  settleDisk()
  let firstByte
  const timer = setInterval(() => {
    if (firstByte === undefined && isWritten(directory)) firstByte = performance.now()
  }, 1)
  await client.createCheckpoint(vm, { memoryBytes })
  clearInterval(timer)
  if (firstByte === undefined) throw new Error(`no RAM file was seen in '${directory}'`)
  return lastEnd() - firstByte
}

function isWritten(directory) {
  return entriesOf(directory).some((id) => {
    const file = path.join(directory, id, 'in/ckp')
    return (fs.statSync(file, { throwIfNoEntry: false })?.size ?? 0) > 0
  })
}

/** The directory is removed when it is empty. */
function entriesOf(directory) {
  try {
    return fs.readdirSync(directory)
  } catch (error) {
    if (error.code !== 'ENOENT') throw error
    return []
  }
}

/** Setting one of the two makes the other one 0, which cannot be written. */
function dirtyBytesLimit() {
  const [before] = [dirtyLimit, dirtyRatio]
    .map((file) => [file, fs.readFileSync(file, 'utf8').trim()])
    .filter(([, value]) => value !== '0')
  return { file: dirtyLimit, value: String(dirtyBytes), before }
}

function diskLimit(directory) {
  const device = diskOf(directory)
  return { file: rateLimit, value: `${device} ${limitedBytesPerSecond}`, before: [rateLimit, `${device} 0`] }
}

/** The numbers of the disk that holds a directory. Those of a partition cannot be limited. */
function diskOf(directory) {
  const { dev } = fs.statSync(directory, { bigint: true })
  const major = ((dev >> 8n) & 0xfffn) | ((dev >> 32n) & ~0xfffn)
  const minor = (dev & 0xffn) | ((dev >> 12n) & ~0xffn)
  const block = fs.realpathSync(`/sys/dev/block/${major}:${minor}`)
  const whole = fs.existsSync(path.join(block, 'partition')) ? path.dirname(block) : block
  return fs.readFileSync(path.join(whole, 'dev'), 'utf8').trim()
}

/** Says so, and measures nothing, where a limit may not be changed. */
async function throttled(limits, work) {
  const changed = []
  const restore = () => changed.forEach(({ before }) => fs.writeFileSync(...before))
  const stop = () => {
    restore()
    process.exit(130)
  }
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP']
  for (const signal of signals) process.on(signal, stop)
  try {
    for (const limit of limits) {
      fs.writeFileSync(limit.file, limit.value, { flag: 'r+' })
      changed.push(limit)
    }
    await work()
  } catch (error) {
    if (!limits.some(({ file }) => file === error.path)) throw error
    console.log(
      `\nnot measured: the freeze on a slow disk, because '${error.path}' cannot be written (${error.code})`,
    )
  } finally {
    for (const signal of signals) process.off(signal, stop)
    restore()
  }
}

function dd(...args) {
  execFileSync('dd', [...args, 'bs=1M', 'status=none'])
}
