/**
 * A checkpoint with all features on, compared with writing the same bytes to disk and digesting them: `dd conv=fsync`
 * from memory, then `openssl dgst`. Also compared with a careful script: a request to the same bhyve, wait for its end,
 * `sync`, `openssl dgst`.
 */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { lastEnd } from './support/end_of_file.mjs'
import { GiB, median, MiB, pairedRatio, timed } from './support/harness.mjs'
import { buildBhyvectl, rivals } from './support/rivals.mjs'
import { settleDisk } from './support/scratch.mjs'

export async function measure({ report, quick, scratch }) {
  const found = []
  for (const mib of quick ? [512] : [256, 512, 1024, 2048, 4096]) {
    found.push(...(await compareContents(scratch, mib * MiB, quick ? 3 : 5)))
  }
  report.keep('guests', found)
  show(report, found)
}

/** Measures both contents in the same rounds, so that they can be compared. */
async function compareContents(scratch, memoryBytes, rounds) {
  const rivalsAsk = rivals(buildBhyvectl(scratch.path))['execFile, wait for EOF']
  const guests = []
  for (const zeroFraction of [0.5, 0]) guests.push(await startGuest(scratch, memoryBytes, zeroFraction))
  try {
    for (let round = 0; round < rounds; round++) {
      for (const guest of guests) await measureRound(scratch, guest, rivalsAsk)
    }
  } finally {
    for (const { bhyve, source } of guests) {
      fs.rmSync(source)
      await bhyve.stop()
    }
  }
  return guests.map(({ result }) => result)
}

async function startGuest(scratch, memoryBytes, zeroFraction) {
  const vm = zeroFraction === 0 ? 'random' : 'half'
  const bhyve = await SimulatedBhyve.start({ vm, memoryBytes, zeroFraction })
  const client = createClient({
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: scratch.at('ours'),
    dialect: 'descriptor',
  })
  const source = await imageInMemory(client, vm)
  const times = { oursMs: [], savingMs: [], ddMs: [], opensslMs: [], scriptMs: [] }
  return { vm, bhyve, client, source, result: { memoryBytes, zeroFraction, ...times } }
}

async function measureRound(scratch, { vm, bhyve, client, source, result }, rivalsAsk) {
  settleDisk()
  const start = performance.now()
  const ours = await timed(() => client.createCheckpoint(vm))
  result.oursMs.push(ours.ms)
  result.savingMs.push(lastEnd() - start)
  await client.destroyAll(vm)
  await client.idle()
  settleDisk()
  const copy = scratch.at('copy')
  result.ddMs.push((await timed(() => dd(source, copy))).ms)
  result.opensslMs.push((await timed(() => digest(copy))).ms)
  fs.rmSync(copy)
  settleDisk()
  const file = scratch.at('script', `${vm}.ckp`)
  result.scriptMs.push((await timed(() => scripted(rivalsAsk, bhyve.socketPath, file))).ms)
  fs.rmSync(scratch.at('script'), { recursive: true })
}

/** A copy of the guest's RAM in memory, where bhyve has it too. Reading it costs no disk access. */
async function imageInMemory(client, vm) {
  const { path: file } = await client.createCheckpoint(vm, { digest: false, sparsify: false, fsync: false })
  const source = `/dev/shm/bhyve-checkpoint-bench-${process.pid}-${vm}`
  execFileSync('cp', ['--sparse=never', file, source])
  await client.destroyAll(vm)
  await client.idle()
  return source
}

function dd(source, copy) {
  execFileSync('dd', [`if=${source}`, `of=${copy}`, 'bs=1M', 'conv=fsync', 'status=none'])
}

function digest(file) {
  execFileSync('openssl', ['dgst', '-sha256', file])
}

async function scripted(ask, socket, file) {
  await ask(socket, file)
  execFileSync('sync', [file, `${file}.kern`, `${file}.meta`])
  digest(file)
}

function show(report, found) {
  const sumOf = ({ ddMs, opensslMs }) => ddMs.map((ms, round) => ms + opensslMs[round])
  const named = (zeroFraction) => (zeroFraction === 0 ? 'all random' : 'half zero')
  report.table(
    'to the resolved promise, all features on; medians in ms, ratios of each round',
    ['RAM MiB', 'content', 'ours', 'bhyve writes', 'dd', 'openssl', 'ratio', 'script', 'ratio'],
    found.map((one) => [
      one.memoryBytes / MiB,
      named(one.zeroFraction),
      ...['oursMs', 'savingMs', 'ddMs', 'opensslMs'].map((key) => median(one[key])),
      pairedRatio(one.oursMs, sumOf(one)),
      median(one.scriptMs),
      pairedRatio(one.oursMs, one.scriptMs),
    ]),
  )
  for (const one of found.filter(({ memoryBytes }) => memoryBytes >= GiB / 2)) {
    const what = `${one.memoryBytes / MiB} MiB, ${named(one.zeroFraction)}: ours over dd + openssl`
    report.atMost(what, pairedRatio(one.oursMs, sumOf(one)), 0.8)
  }
  for (const half of found.filter((one) => one.memoryBytes >= GiB / 2 && one.zeroFraction > 0)) {
    const random = found.find((one) => one.memoryBytes === half.memoryBytes && one.zeroFraction === 0)
    const what = `${half.memoryBytes / MiB} MiB: half zero over all random`
    report.atMost(what, pairedRatio(half.oursMs, random.oursMs), 1)
  }
}
