/**
 * An export compared with `tar --sparse --format=posix`, both to a pipe that is discarded. An import with digests and
 * fsync compared with `tar -x`, `sync` and `openssl dgst`. The programs that call the library measure their memory and
 * the delay of their event loop.
 */
import { execFile, execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { promisify } from 'node:util'
import { fileURLToPath } from 'node:url'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { median, MiB, pairedRatio, timed } from './support/harness.mjs'
import { settleDisk } from './support/scratch.mjs'

const run = promisify(execFile)
const host = fileURLToPath(new URL('support/archive-host.mjs', import.meta.url))
const command = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url))
const endings = ['.manifest', '.meta', '.kern', '']

export async function measure({ report, quick, scratch }) {
  const memoryBytes = (quick ? 256 : 1024) * MiB
  const checkpointDirectory = scratch.at('checkpoints')
  await saveGuest(checkpointDirectory, 'vm1', memoryBytes)
  await saveGuest(checkpointDirectory, 'small', MiB)
  const archive = scratch.at('vm1.tar')
  const exporting = `export vm1 checkpoint --checkpoint-directory '${checkpointDirectory}'`
  const exportCommand = `'${process.execPath}' '${command}' ${exporting} 2>/dev/null`
  shell(`${exportCommand} >'${archive}'`)
  const task = { checkpointDirectory, archive }
  const files = endings.map((ending) => `'checkpoint.ckp${ending}'`).join(' ')
  const packing = `cd '${checkpointDirectory}/vm1' && tar --sparse --format=posix -cf - ${files} | cat >/dev/null`
  const found = { idle: [], exports: [], tarMs: [], commandMs: [], imports: [], extractMs: [] }
  for (let round = 0; round < (quick ? 3 : 5); round++) {
    settleDisk()
    found.idle.push(await measured({ ...task, way: 'nothing' }))
    found.exports.push(await measured({ ...task, way: 'export' }))
    found.tarMs.push((await timed(() => shell(packing))).ms)
    found.commandMs.push((await timed(() => shell(`${exportCommand} | cat >/dev/null`))).ms)
    settleDisk()
    found.imports.push(await measured({ ...task, way: 'import' }))
    fs.rmSync(path.join(checkpointDirectory, 'imported'), { recursive: true })
    settleDisk()
    const target = scratch.makeDirectory('extracted')
    const extracting = `cd '${target}' && tar -xf '${archive}' && sync ${files} && openssl dgst -sha256 checkpoint.ckp`
    found.extractMs.push((await timed(() => shell(extracting))).ms)
    fs.rmSync(target, { recursive: true })
  }
  report.keep('runs', { memoryBytes, ...found })
  show(report, memoryBytes, found)
}

async function saveGuest(checkpointDirectory, vm, memoryBytes) {
  const bhyve = await SimulatedBhyve.start({ vm, memoryBytes, zeroFraction: 0.5 })
  try {
    const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory })
    await client.createCheckpoint(vm)
  } finally {
    await bhyve.stop()
  }
}

async function measured(task) {
  const { stdout } = await run(process.execPath, [host, JSON.stringify(task)])
  return JSON.parse(stdout)
}

function shell(text) {
  execFileSync('sh', ['-c', text], { stdio: ['ignore', 'ignore', 'inherit'] })
}

function show(report, memoryBytes, { idle, exports, tarMs, commandMs, imports, extractMs }) {
  const of = (runs, key) => median(runs.map((one) => one[key]))
  const msOf = (runs) => runs.map(({ ms }) => ms)
  const columns = ['lateMs', 'blockedMs', 'rssGrowthMiB']
  report.table(
    `${memoryBytes / MiB} MiB of RAM, half zero; medians`,
    ['what', 'ms', 'max delay of the event loop', 'without waiting for a core', 'RSS growth, MiB'],
    [
      ['idle program', '-', ...columns.map((key) => of(idle, key))],
      ['exportCheckpoint', of(exports, 'ms'), ...columns.map((key) => of(exports, key))],
      ['bhyve-checkpoint export', median(commandMs), '-', '-', '-'],
      ['tar --sparse --format=posix', median(tarMs), '-', '-', '-'],
      ['importCheckpoint', of(imports, 'ms'), ...columns.map((key) => of(imports, key))],
      ['tar -x, sync, openssl dgst', median(extractMs), '-', '-', '-'],
    ],
  )
  report.atLeast('rate of exportCheckpoint over that of tar', pairedRatio(tarMs, msOf(exports)), 0.8)
  report.atMost(
    'importCheckpoint over tar -x, sync and openssl dgst',
    pairedRatio(msOf(imports), extractMs),
    1.25,
  )
  for (const [what, runs] of Object.entries({ export: exports, import: imports })) {
    report.atMost(`${what}: event loop delay over that of an idle program, ms`, over(runs, idle), 5)
    report.atMost(`${what}: RSS growth, MiB`, of(runs, 'rssGrowthMiB'), 64)
  }
}

function over(runs, idle) {
  return median(runs.map(({ lateMs }, round) => lateMs - idle[round].lateMs))
}
