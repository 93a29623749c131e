/**
 * The library's process, or it and its guard, are killed at a system call of a save with disks. The VM runs on, and the
 * snapshots are those of the published checkpoints. `DISK_KILLS=all` kills at every call, and takes minutes.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { createClient, type CheckpointClient, fileDisks } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { processState } from '../support/guards.js'
import { childEnvironment, scratch, tree, until } from '../support/index.js'
import { needs } from '../support/programs.js'

const MiB = 1024 * 1024
const script = path.join(import.meta.dirname, '../support/capturing.mjs')
/** Calls that change something or talk to somebody. */
const calls =
  'sendmsg,sendto,openat,renameat,renameat2,unlinkat,mkdirat,fsync,fdatasync,ioctl,kill,pidfd_send_signal,write,pwrite64,ftruncate,flock'
const sampled = 10

interface World {
  bhyve: SimulatedBhyve
  root: string
  client: CheckpointClient
  command: string[]
}

async function world(t: Test, dialect: 'reply' | 'descriptor'): Promise<World> {
  const root = fs.mkdtempSync(path.join(process.env.FROZEN_DIRECTORY ?? scratch(t), 'kills-'))
  t.teardown(() => fs.rmSync(root, { recursive: true }))
  const disk = path.join(root, 'disk.img')
  fs.writeFileSync(disk, Buffer.alloc(MiB))
  const saving = { memoryBytes: 2 * MiB, writeRate: 16 * MiB }
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', ...saving, dialect, disks: [disk] })
  t.teardown(() => bhyve.stop())
  const checkpointDirectory = path.join(root, 'checkpoints')
  const { runDirectory } = bhyve
  const client = createClient({ runDirectory, checkpointDirectory })
  const selection = fileDisks({ files: [disk], allowCopy: process.env.FROZEN_DIRECTORY === undefined })
  const command = [process.execPath, script, runDirectory, checkpointDirectory, JSON.stringify(selection)]
  return { bhyve, root, client, command }
}

/** Runs the script until the n-th of the calls in one of its threads. Returns the trace. */
async function kill({ root, command }: World, n: number | undefined, both: boolean): Promise<string> {
  const trace = path.join(root, 'trace')
  const inject = n === undefined ? [] : ['-e', `inject=${calls}:signal=KILL:when=${String(n)}`]
  const options = ['-f', '-qq', '-o', trace, '-e', `trace=${calls}`, ...inject]
  const child = spawn('strace', [...options, ...command], { env: childEnvironment(), stdio: 'ignore' })
  const exited = once(child, 'exit')
  if (both) await killGuards(root, exited)
  await exited
  return fs.readFileSync(trace, 'utf8')
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

/** The numbers of the calls from the first preparation of the disks to the end, in the thread that does the work. */
function positions(trace: string): number[] {
  const lines = trace.split('\n')
  const first = lines.find((line) => line.includes('mkdirat(') && line.includes('".disks"'))
  const thread = first?.split(' ')[0] ?? ''
  const own = lines.filter((line) => line.startsWith(`${thread} `))
  const from = own.indexOf(first ?? '')
  return own.slice(from).map((_, index) => from + index + 1)
}

for (const [dialect, both] of [
  ['reply', false],
  ['descriptor', true],
] as const) {
  void t.test(
    `${dialect}: killed ${both ? 'with its guard ' : ''}at any call of a save with disks`,
    needs('strace'),
    async (t) => {
      const one = await world(t, dialect)
      const { bhyve, client, root } = one
      const all = positions(await kill(one, undefined, false))
      t.ok(all.length > 30, `${String(all.length)} calls`)
      const step = process.env.DISK_KILLS === 'all' ? 1 : Math.ceil(all.length / sampled)
      const offset = Math.floor(Math.random() * step)
      for (const n of all.filter((_, index) => index % step === offset)) {
        await kill(one, n, both)
        if (both) await client.listCheckpoints('vm1')
        await until(() => processState(bhyve.pid) === 'running', `call ${String(n)}: the VM runs`, 5_000)
        await examine(t, one, `call ${String(n)}`)
      }
      await client.destroyAll('vm1')
      t.strictSame(tree(path.join(root, 'checkpoints')), [])
    },
  )
}

/** Once recovery may decide about every stage, nothing is left, and nothing is missing. */
async function examine(t: Test, { client, root }: World, what: string): Promise<void> {
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
  const ids: string[] = []
  for (const { name, state, disks } of await client.listCheckpoints('vm1')) {
    t.equal(state, 'complete', `${what}: ${name}`)
    t.match(await client.verifyCheckpoint('vm1', name), { ok: true }, `${what}: ${name}`)
    ids.push(...(disks ?? []).map(({ snapshot }) => path.basename(path.dirname(snapshot))))
  }
  const present = fs.existsSync(path.join(directory, '.disks'))
    ? fs.readdirSync(path.join(directory, '.disks'))
    : []
  t.strictSame(present.sort(), ids.sort(), `${what}: the snapshots`)
}
