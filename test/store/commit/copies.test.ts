/**
 * Tests of a VM's directory that was copied by hand. Everything that protects its owner from a mistake must survive.
 */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { type CheckpointClient, createClient, type ListedCheckpoint } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { jobs } from '../../../dist/worker/jobs.js'
import { Directory } from '../../../dist/fs/directory.js'
import { listedCheckpoint } from '../../../dist/checkpoint/read.js'
import { assertNotOlder } from '../../../dist/store/commit/replaceable.js'
import { scratch, until } from '../../support/index.js'
import { needs } from '../../support/programs.js'
import { changeManifest, manifestOf } from '../../support/sets.js'

const names = ['live', 'pinned', 'restored', 'suspend'] as const
/** How long after power-off a disk file's modification time may still change. */
const lateMs = process.platform === 'freebsd' ? 2_000 : 0

interface Original {
  root: string
  runDirectory: string
  disk: string
  client: CheckpointClient
}

let original: Original

t.before(async () => {
  const root = fs.mkdtempSync(path.join(scratch(t), 'original'))
  const [runDirectory, disk] = [path.join(root, 'run'), path.join(root, 'disk')]
  fs.mkdirSync(runDirectory)
  const client = clientAt(root, runDirectory)
  original = { root, runDirectory, disk, client }
  await whileItRuns(() => client.createCheckpoint('vm1', { name: 'live' }))
  await whileItRuns(() => client.createCheckpoint('vm1', { name: 'pinned', digest: false, sparsify: false }))
  await client.pinCheckpoint('vm1', 'pinned')
  await whileItRuns(() => client.suspend('vm1', { name: 'restored', digest: false }))
  recordRestored(path.join(root, 'c', 'vm1'), 'restored')
  const { createdAt } = await whileItRuns(() => client.suspend('vm1'))
  // Change the VM's disk after the VM was powered off, and before anything is copied.
  const changed = createdAt.getTime() + lateMs + 5
  fs.writeFileSync(disk, '')
  fs.utimesSync(disk, new Date(changed), new Date(changed))
  await until(() => Date.now() > changed + 5, 'the clock is later than the time of the disk')
})

function clientAt(root: string, runDirectory: string): CheckpointClient {
  return createClient({ runDirectory, checkpointDirectory: path.join(root, 'c'), dialect: 'descriptor' })
}

async function whileItRuns<T>(work: () => Promise<T>): Promise<T> {
  const { runDirectory } = original
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 1024 * 1024, runDirectory })
  try {
    return await work()
  } finally {
    await bhyve.stop()
  }
}

function recordRestored(directory: string, name: string): void {
  const { identity } = jobs.inspectForRestore(directory, 'vm1', name)
  const restore = { at: new Date().toISOString(), again: false }
  const record = jobs.recordRestore(directory, 'vm1', name, identity, restore)
  if (record !== undefined) jobs.confirmRestore(directory, name, record)
}

/** Everything that the library reports about the store, except for paths and stored sizes, which a copy may change. */
async function knownOf(
  client: CheckpointClient,
  { disk, runDirectory }: Original,
): Promise<Record<string, unknown> & { plans: Map<string, string[]> }> {
  const args = ['-c2', '-m1M', '-s0,hostbridge', '-s', `3,virtio-blk,${disk}`, '-s31,lpc']
  const options = { args: [...args, '-o', `rundir=${runDirectory}`, 'vm1'] }
  const plans = await Promise.all(
    names.map(async (name) => {
      const { blockers, warnings } = await client.planRestore('vm1', name, options)
      return [name, [...blockers, ...warnings].map(({ code }) => code).sort()] as const
    }),
  )
  const { createdAt } = await client.getCheckpoint('vm1', 'suspend')
  const state = (await client.suspendedCheckpoint('vm1'))?.name
  const since = new Date(createdAt.getTime() + 1)
  const stateSince = (await client.suspendedCheckpoint('vm1', { since }))?.name
  const { removed, kept } = await client.pruneCheckpoints('vm1', { keepLast: 1, dryRun: true })
  const listed = (await client.listCheckpoints('vm1')).map(withoutPaths)
  return { listed, plans: new Map<string, string[]>(plans), state, stateSince, removed, kept }
}

function withoutPaths(listed: ListedCheckpoint): object {
  const { path: _path, files: _files, storedBytes: _storedBytes, ...others } = listed
  return others
}

function shell(script: string): (from: string, to: string) => void {
  return (from, to) => void execFileSync('/bin/sh', ['-c', script, 'sh', from, to])
}

const ways: [string, (from: string, to: string) => void, string?][] = [
  ['cp -r', shell('cp -r "$1" "$2"')],
  ['cp -a', shell('cp -a "$1" "$2"')],
  ['tar', shell('mkdir "$2" && tar -C "$1" -cf - . | tar -C "$2" -xf -')],
  ['rsync -r', shell('rsync -r "$1/" "$2/"'), 'rsync'],
  ['rsync -a', shell('rsync -a "$1/" "$2/"'), 'rsync'],
  ['rsync -a -S', shell('rsync -a -S "$1/" "$2/"'), 'rsync'],
]

for (const [way, copy, program] of ways) {
  const needed = program === undefined ? {} : needs(program)
  t.test(`a copy with ${way} is listed, planned and verified like the original`, needed, async (t) => {
    const root = scratch(t)
    copy(path.join(original.root, 'c'), path.join(root, 'c'))
    const client = clientAt(root, original.runDirectory)
    const known = await knownOf(original.client, original)
    t.strictSame(await knownOf(client, original), known)
    t.match(known, { state: 'suspend', stateSince: undefined, removed: ['live', 'restored'] })
    t.ok(known.plans.get('live')?.includes('disks-moved-on'))
    t.ok(known.plans.get('restored')?.includes('already-restored'))
    t.ok(known.plans.get('suspend')?.includes('disk-newer'))
    for (const name of names)
      t.match(await client.verifyCheckpoint('vm1', name, { depth: 'content' }), { ok: true, problems: [] })
  })
}

function copied(t: Test): { directory: string; client: CheckpointClient } {
  const root = scratch(t)
  shell('cp -r "$1" "$2"')(path.join(original.root, 'c'), path.join(root, 'c'))
  return { directory: path.join(root, 'c', 'vm1'), client: clientAt(root, original.runDirectory) }
}

t.test('a checkpoint saved between a state and its copy may replace the copy', async (t) => {
  const { directory: where } = copied(t)
  const { createdAt } = await original.client.getCheckpoint('vm1', 'suspend')
  using directory = Directory.openPath(where)
  const assertNewer = (name: string, savedMs: number): void => {
    const [existing] = listedCheckpoint(directory, 'vm1', name)
    assertNotOlder(directory, existing, { name, savedMs, poweredOff: false })
  }
  t.doesNotThrow(() => assertNewer('suspend', createdAt.getTime() + 1))
  t.throws(() => assertNewer('suspend', createdAt.getTime() - 1))
  for (const name of ['live', 'restored'])
    t.doesNotThrow(() => assertNewer(name, 1), `${name} is not a suspended state that waits for a restore`)
})

for (const [what, change] of [
  ['no digests, as from an older release', { fingerprint: undefined }],
  ['invalid digests', { fingerprint: { algorithm: 'sha256', kernel: 'x', metadata: 'y' } }],
  [
    'digests of other files',
    { fingerprint: { algorithm: 'sha256', kernel: '0'.repeat(64), metadata: '0'.repeat(64) } },
  ],
  ['another size of the kernel file', { sizes: { memory: 1024 * 1024, kernel: 1 } }],
] as const) {
  t.test(`a copy with ${what} is as old as its RAM file`, async (t) => {
    const { directory, client } = copied(t)
    t.ok('fingerprint' in manifestOf(directory, 'pinned'))
    changeManifest(directory, 'pinned', change)
    const { createdAt, pinned, path: file } = await client.getCheckpoint('vm1', 'pinned')
    t.equal(createdAt.getTime(), Math.trunc(fs.statSync(file).mtimeMs))
    t.equal(pinned, true, 'the pin is still valid')
  })
}

t.test('a new checkpoint of another tool under the name is not taken for a copy', async (t) => {
  const { directory, client } = copied(t)
  const file = path.join(directory, 'suspend.ckp')
  const kernel = fs.readFileSync(`${file}.kern`)
  kernel[0]! ^= 1
  fs.writeFileSync(`${file}.kern`, kernel)
  const { createdAt } = await client.getCheckpoint('vm1', 'suspend')
  t.equal(createdAt.getTime(), Math.trunc(fs.statSync(file).mtimeMs))
})

t.test('verify: reads the kernel file of a copy, but not that of the original', async (t) => {
  const bytesOf = async (client: CheckpointClient): Promise<number> =>
    (await client.verifyCheckpoint('vm1', 'live')).bytesRead
  const { client } = copied(t)
  t.ok((await bytesOf(client)) > (await bytesOf(original.client)))
})
