/**
 * How long the guest is frozen with a memory stage and without, on a disk whose writes are throttled, compared with
 * writing the same bytes into a tmpfs with `dd`. And how long the copy to the disk takes after bhyve's end, compared
 * with `dd conv=fsync` of the same bytes. The freeze is seen from outside: from the first byte of RAM in the file to the end of
 * bhyve's connection.
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
const throttle = '/proc/sys/vm/dirty_bytes'

export async function measure({ report, quick, scratch }) {
  const memoryBytes = quick ? GiB / 4 : 2 * GiB
  const rounds = quick ? 3 : 5
  fs.mkdirSync(tmpfs, { mode: 0o700 })
  try {
    for (const zeroFraction of [0.5, 0]) {
      const guest = await startGuest(scratch, memoryBytes, zeroFraction)
      try {
        await measureCopy(report, scratch, guest, rounds)
        if (zeroFraction === 0) await throttled(report, () => measureFreeze(report, scratch, guest, rounds))
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
  for (let round = 0; round < rounds; round++) {
    settleDisk()
    const copy = scratch.at('copy')
    found.ddMs.push((await timed(() => dd(`if=${source}`, `of=${copy}`, 'conv=fsync'))).ms)
    fs.rmSync(copy)
    settleDisk()
    const { stage } = await inMemory.createCheckpoint(vm, { memoryBytes })
    found.oursMs.push(performance.now() - lastEnd())
    if (stage !== 'memory') throw new Error('the checkpoint was written on the disk')
    await inMemory.destroyAll(vm)
    await inMemory.idle()
  }
  const content = zeroFraction === 0 ? 'all random' : 'half zero'
  report.keep(`copy ${content}`, { memoryBytes, ...found })
  const ratio = pairedRatio(found.oursMs, found.ddMs)
  report.table(
    `${memoryBytes / MiB} MiB, ${content}: from bhyve's end to the promise; medians in ms`,
    ['ours', 'dd conv=fsync', 'ratio'],
    [[median(found.oursMs), median(found.ddMs), ratio]],
  )
  report.atMost(`${content}: copy to the disk over dd conv=fsync`, ratio, 1.15)
}

async function measureFreeze(report, scratch, { vm, inMemory, onDisk, source, memoryBytes }, rounds) {
  const found = { memoryMs: [], diskMs: [], ddMs: [] }
  for (let round = 0; round < rounds; round++) {
    const copy = path.join(tmpfs, 'copy')
    found.ddMs.push((await timed(() => dd(`if=${source}`, `of=${copy}`))).ms)
    fs.rmSync(copy)
    found.memoryMs.push(await frozenMs(inMemory, vm, memoryBytes, path.join(tmpfs, 'stage/.memory-stage')))
    found.diskMs.push(await frozenMs(onDisk, vm, memoryBytes, scratch.at('ours', vm, '.staging')))
  }
  report.keep('freeze', { memoryBytes, dirtyBytes, ...found })
  const toDd = pairedRatio(found.memoryMs, found.ddMs)
  const toDisk = pairedRatio(found.diskMs, found.memoryMs)
  report.table(
    `freeze of ${memoryBytes / MiB} MiB with vm.dirty_bytes at ${dirtyBytes / MiB} MiB; medians in ms`,
    ['memory stage', 'dd into tmpfs', 'ratio', 'disk', 'disk over memory'],
    [[median(found.memoryMs), median(found.ddMs), toDd, median(found.diskMs), toDisk]],
  )
  report.atMost('freeze with the memory stage over dd into a tmpfs', toDd, 1.3)
  report.atLeast('freeze without the memory stage over that with it', toDisk, 3)
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

/** Says so, and measures nothing, where the limit may not be changed. */
async function throttled(report, work) {
  const before = [throttle, '/proc/sys/vm/dirty_ratio'].map((file) => [
    file,
    fs.readFileSync(file, 'utf8').trim(),
  ])
  try {
    fs.writeFileSync(throttle, String(dirtyBytes))
  } catch (error) {
    console.log(
      `\nnot measured: the freeze on a throttled disk, because '${throttle}' cannot be written (${error.code})`,
    )
    return
  }
  const restore = () => {
    // Setting one of the two makes the other one 0, which cannot be written.
    for (const [file, value] of before) if (value !== '0') fs.writeFileSync(file, value)
  }
  const stop = () => {
    restore()
    process.exit(130)
  }
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, stop)
  try {
    await work()
  } finally {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.off(signal, stop)
    restore()
  }
}

function dd(...args) {
  execFileSync('dd', [...args, 'bs=1M', 'status=none'])
}
