/**
 * A checkpoint with everything on against what it takes to write the same bytes to the disk and digest them:
 * `dd conv=fsync` from memory, then `openssl dgst`. And against a careful script: the same bhyve asked, its end waited
 * for, `sync`, `openssl dgst`.
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
  for (const [mib, rounds] of quick
    ? [[512, 3]]
    : [
        [256, 5],
        [512, 5],
        [1024, 5],
        [2048, 3],
        [4096, 3],
      ]) {
    for (const zeroFraction of [0.5, 0]) {
      found.push(await compare(scratch, { memoryBytes: mib * MiB, zeroFraction, rounds }))
    }
  }
  report.keep('guests', found)
  show(report, found)
}

async function compare(scratch, { memoryBytes, zeroFraction, rounds }) {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes, zeroFraction })
  const { runDirectory, socketPath } = bhyve
  const client = createClient({
    runDirectory,
    checkpointDirectory: scratch.at('ours'),
    dialect: 'descriptor',
  })
  const ask = rivals(buildBhyvectl(scratch.path))['execFile, wait for EOF']
  const source = await imageInMemory(client)
  const result = {
    memoryBytes,
    zeroFraction,
    oursMs: [],
    savingMs: [],
    ddMs: [],
    opensslMs: [],
    scriptMs: [],
  }
  try {
    for (let round = 0; round < rounds; round++) {
      settleDisk()
      const start = performance.now()
      const ours = await timed(() => client.createCheckpoint('vm1'))
      result.oursMs.push(ours.ms)
      result.savingMs.push(lastEnd() - start)
      await client.destroyAll('vm1')
      settleDisk()
      const copy = scratch.at('copy')
      result.ddMs.push((await timed(() => dd(source, copy))).ms)
      result.opensslMs.push((await timed(() => digest(copy))).ms)
      fs.rmSync(copy)
      settleDisk()
      result.scriptMs.push((await timed(() => scripted(ask, socketPath, scratch.at('script', 'vm1.ckp')))).ms)
      fs.rmSync(scratch.at('script'), { recursive: true })
    }
  } finally {
    fs.rmSync(source)
    await bhyve.stop()
  }
  return result
}

/** The guest's RAM where reading it costs no disk, as bhyve has it. */
async function imageInMemory(client) {
  const { path: file } = await client.createCheckpoint('vm1', {
    digest: false,
    sparsify: false,
    fsync: false,
  })
  const source = `/dev/shm/bhyve-checkpoint-bench-${process.pid}`
  execFileSync('cp', ['--sparse=never', file, source])
  await client.destroyAll('vm1')
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
    'to the resolved promise, everything on; medians in ms, ratios of each round',
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
}
