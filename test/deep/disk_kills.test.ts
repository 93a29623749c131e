/**
 * The library's process, or it and its guard, are killed at a system call of a save with disks. The VM runs on, and the
 * snapshots are those of the published checkpoints. `DISK_KILLS=200` kills at every call, and takes half an
 * hour.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import {
  createClient,
  type CheckpointClient,
  type DiskSelection,
  fileDisks,
  zfsDisks,
} from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { processState } from '../support/guards.js'
import { childEnvironment, scratch, tree, until } from '../support/index.js'
import { needs } from '../support/programs.js'
import { command, needsPools, pool } from '../support/zfs_pool.js'

const MiB = 1024 * 1024
const script = path.join(import.meta.dirname, '../support/capturing.mjs')
/** Calls that change something or talk to somebody. */
const calls =
  'sendmsg,sendto,openat,renameat,renameat2,unlinkat,mkdirat,fsync,fdatasync,ioctl,kill,pidfd_send_signal,write,pwrite64,ftruncate,flock'
/** Starts of programs, which the main thread does. */
const starts = 'vfork,fork,clone'
const sampled = Number(process.env.DISK_KILLS ?? '3')

interface World {
  bhyve: SimulatedBhyve
  root: string
  client: CheckpointClient
  command: string[]
  /** The ids of the checkpoints that have a snapshot. */
  ids: () => string[]
}

/** A disk, how it is captured, and the ids of the checkpoints that have a snapshot of it. */
interface Disk {
  disk: string
  selection: DiskSelection
  ids: () => string[]
}

function image(root: string): Promise<Disk> {
  const disk = path.join(root, 'disk.img')
  const allowCopy = process.env.FROZEN_DIRECTORY === undefined
  const snapshots = path.join(root, 'checkpoints/vm1/.disks')
  const ids = (): string[] => (fs.existsSync(snapshots) ? fs.readdirSync(snapshots) : [])
  return Promise.resolve({ disk, selection: fileDisks({ files: [disk], allowCopy }), ids })
}

async function dataset(t: Test): Promise<Disk> {
  const { name, root } = await pool(t)
  command(`zfs create ${name}/vm1`)
  const ids = (): string[] =>
    command(`zfs list -H -t snapshot -o name -r ${name}`)
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => line.split('@')[1] ?? '')
  return { disk: path.join(root, 'vm1/disk.img'), selection: zfsDisks({ datasets: [`${name}/vm1`] }), ids }
}

async function world(t: Test, dialect: 'reply' | 'descriptor', kind: 'file' | 'zfs'): Promise<World> {
  const root = fs.mkdtempSync(path.join(process.env.FROZEN_DIRECTORY ?? scratch(t), 'kills-'))
  t.teardown(() => fs.rmSync(root, { recursive: true }))
  const { disk, selection, ids } = await (kind === 'file' ? image(root) : dataset(t))
  fs.writeFileSync(disk, Buffer.alloc(MiB))
  const saving = { memoryBytes: 2 * MiB, writeRate: 16 * MiB }
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', ...saving, dialect, disks: [disk] })
  t.teardown(() => bhyve.stop())
  const checkpointDirectory = path.join(root, 'checkpoints')
  const { runDirectory } = bhyve
  const client = createClient({ runDirectory, checkpointDirectory })
  const command = [process.execPath, script, runDirectory, checkpointDirectory, JSON.stringify(selection)]
  return { bhyve, root, client, command, ids }
}

/** The n-th of these calls in a thread. */
interface Strike {
  calls: string
  n: number
}

/** Runs the script until the strike. Returns the trace. */
async function kill(
  { root, command }: World,
  { calls: struck, n }: Partial<Strike>,
  both: boolean,
): Promise<string> {
  const trace = path.join(root, 'trace')
  const inject = struck === undefined ? [] : ['-e', `inject=${struck}:signal=KILL:when=${String(n)}`]
  const options = ['-f', '-qq', '-o', trace, '-e', `trace=${calls},${starts}`, ...inject]
  const child = spawn('strace', [...options, ...command], { env: childEnvironment(), stdio: 'ignore' })
  const exited = once(child, 'exit')
  if (both) await killGuards(root, exited)
  await exited
  return fs.readFileSync(trace, 'utf8')
}

/** The calls are counted per thread. If another thread did the work, none may have reached the number: a lower one follows. */
async function killAt(one: World, { calls: struck, n }: Strike, both: boolean): Promise<Strike> {
  for (let count = n; ; count = Math.floor(count * 0.8)) {
    assert.ok(count > 0, `no thread made ${String(n)} calls, or fewer`)
    const trace = await kill(one, { calls: struck, n: count }, both)
    if (trace.includes('killed by SIGKILL')) return { calls: struck, n: count }
  }
}

/** Kills each guard of this store whose manager has died, until the tracer has ended. */
async function killGuards(root: string, exited: Promise<unknown>): Promise<void> {
  let isOver = false
  void exited.then(() => (isOver = true))
  await until(() => {
    for (const pid of orphanedGuards(root)) process.kill(pid, 'SIGKILL')
    return isOver
  }, 'the tracer ends')
}

/** A guard works in the inbox of its stage. */
function orphanedGuards(root: string): number[] {
  return fs.readdirSync('/proc').flatMap((pid) => {
    try {
      if (!/^\d+$/.test(pid) || !fs.readlinkSync(`/proc/${pid}/cwd`).startsWith(root)) return []
      const stat = fs.readFileSync(`/proc/${pid}/stat`, 'latin1')
      return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1] === '1' ? [Number(pid)] : []
    } catch {
      return []
    }
  })
}

/** The calls from the first one about the snapshots to the end, in the thread that does the work, and all starts. */
function strikesIn(trace: string): Strike[] {
  const lines = trace.split('\n')
  const first = lines.find((line) => /"\.disks"|"snapshots\.new", O_WRONLY/.test(line)) ?? ''
  const own = lines.filter((line) => line.startsWith(`${first.split(' ')[0] ?? ''} `) && !isStart(line))
  const from = own.indexOf(first)
  const [main = ''] = lines[0]?.split(' ') ?? []
  const started = lines.filter((line) => line.startsWith(`${main} `) && isStart(line))
  return [
    ...own.slice(from).map((_, index) => ({ calls, n: from + index + 1 })),
    ...started.map((_, index) => ({ calls: starts, n: index + 1 })),
  ]
}

function isStart(line: string): boolean {
  return /^\d+ +(?:vfork|fork|clone)\(/.test(line)
}

for (const [kind, dialect, both] of [
  ['file', 'reply', false],
  ['file', 'descriptor', true],
  ['zfs', 'reply', false],
  ['zfs', 'descriptor', true],
] as const) {
  const needed = kind === 'zfs' && needsPools().skip !== false ? needsPools() : needs('strace')
  void t.test(
    `${kind}, ${dialect}: killed${both ? ' with its guard' : ''} at any call of a save`,
    needed,
    async (t) => {
      const one = await world(t, dialect, kind)
      const { bhyve, client, root, ids } = one
      const all = strikesIn(await kill(one, {}, false))
      t.ok(all.length > 30, `${String(all.length)} calls`)
      const step = Math.ceil(all.length / sampled)
      const offset = Math.floor(Math.random() * step)
      for (const strike of all.filter((_, index) => index % step === offset)) {
        const struck = await killAt(one, strike, both)
        const what = `${struck.calls === starts ? 'start' : 'call'} ${String(struck.n)}`
        if (both) await client.listCheckpoints('vm1')
        await until(() => processState(bhyve.pid) === 'running', `${what}: the VM runs`, 5_000)
        await examine(t, one, what)
      }
      await client.destroyAll('vm1')
      t.strictSame([tree(path.join(root, 'checkpoints')), ids()], [[], []])
    },
  )
}

/** Once recovery may decide about every stage, nothing is left, and nothing is missing. */
async function examine(t: Test, { client, root, ids }: World, what: string): Promise<void> {
  const directory = path.join(root, 'checkpoints/vm1')
  const left = (): string[] => tree(path.join(directory, '.staging'))
  await until(
    async () => {
      await client.listCheckpoints('vm1')
      return left().length === 0
    },
    `${what}: recovery ends`,
    90_000,
  )
  const wanted: string[] = []
  for (const { name, state, files, disks } of await client.listCheckpoints('vm1')) {
    t.equal(state, 'complete', `${what}: ${name}`)
    t.match(await client.verifyCheckpoint('vm1', name), { ok: true }, `${what}: ${name}`)
    const { id } = JSON.parse(fs.readFileSync(files?.manifest ?? '', 'utf8')) as { id: string }
    if (disks !== undefined) wanted.push(id)
  }
  t.strictSame(ids().sort(), wanted.sort(), `${what}: the snapshots`)
}
