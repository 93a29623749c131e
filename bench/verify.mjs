/**
 * Verifies the content of many checkpoints: in parallel, one after the other, and with `openssl dgst -sha256` of the same
 * RAM files. Both ways of the library also record the verification in the manifest, with an fsync.
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
const host = fileURLToPath(new URL('support/verify-host.mjs', import.meta.url))
const command = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url))
const endings = ['', '.kern', '.meta', '.manifest']

export async function measure({ report, quick, scratch }) {
  const groups = [
    { what: 'small', count: quick ? 25 : 100, memoryBytes: 8 * MiB },
    { what: 'large', count: quick ? 2 : 4, memoryBytes: 256 * MiB },
  ]
  const found = {}
  for (const group of groups) {
    const root = scratch.at(group.what)
    await fill(root, group)
    found[group.what] = { ...group, ...(await rounds(root, quick ? 2 : 5)) }
    fs.rmSync(root, { recursive: true })
  }
  report.keep('groups', found)
  show(report, Object.values(found))
}

/** Copies of one checkpoint, each with files of its own. */
async function fill(root, { count, memoryBytes }) {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes })
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: root })
  const { path: file } = await client.createCheckpoint('vm1', { name: 'c0' })
  await bhyve.stop()
  const { atime, mtime } = fs.statSync(file)
  for (let index = 1; index < count; index++) {
    const copy = path.join(root, 'vm1', `c${index}.ckp`)
    for (const ending of endings) fs.copyFileSync(file + ending, copy + ending)
    fs.utimesSync(copy, atime, mtime)
  }
}

async function rounds(root, count) {
  const result = { parallelMs: [], serialMs: [], commandMs: [], opensslMs: [] }
  const directory = path.join(root, 'vm1')
  const files = fs.readdirSync(directory).filter((name) => name.endsWith('.ckp'))
  const places = ['--checkpoint-directory', root]
  for (let round = 0; round < count; round++) {
    for (const way of ['serial', 'parallel']) {
      settleDisk()
      result[`${way}Ms`].push(await inLibrary({ way, root }))
    }
    settleDisk()
    const verify = () => run(process.execPath, [command, 'verify', '--all', '--content', '-q', ...places])
    result.commandMs.push((await timed(verify)).ms)
    const openssl = () => execFileSync('openssl', ['dgst', '-sha256', ...files], { cwd: directory })
    result.opensslMs.push((await timed(openssl)).ms)
  }
  return result
}

async function inLibrary(task) {
  const { stdout } = await run(process.execPath, [host, JSON.stringify(task)])
  return JSON.parse(stdout).ms
}

function show(report, groups) {
  report.table(
    'verification of content; medians in ms',
    ['checkpoints', 'MiB each', 'in parallel', 'one after the other', 'the command', 'openssl dgst'],
    groups.map(({ count, memoryBytes, parallelMs, serialMs, commandMs, opensslMs }) => [
      ...[count, memoryBytes / MiB],
      ...[parallelMs, serialMs, commandMs, opensslMs].map(median),
    ]),
  )
  const [small, large] = groups
  const over = ({ parallelMs, ...others }, other) => pairedRatio(parallelMs, others[other])
  report.atMost('small ones: in parallel over one after the other', over(small, 'serialMs'), 0.7)
  report.atMost('large ones: in parallel over one after the other', over(large, 'serialMs'), 1.1)
  report.atMost('small ones: in parallel over openssl dgst', over(small, 'opensslMs'), 1)
  report.atMost('large ones: in parallel over openssl dgst', over(large, 'opensslMs'), 0.8)
}
