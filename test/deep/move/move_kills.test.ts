/**
 * The process of either host is killed before a system call that changes something. At every moment exactly one host can
 * be made to run the VM, and the next calls move it. `MOVE_KILLS=1000` kills at every such call.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { childEnvironment } from '../../support/index.js'
import { assertOneHost, drive, startsOf } from '../../support/move_invariant.js'
import { Move, type MovingHost } from '../../support/moving.js'
import { needs } from '../../support/programs.js'

const script = path.join(import.meta.dirname, '../../support/move_side.mjs')
const calls = 'renameat,renameat2,unlinkat,mkdirat,fsync,fdatasync,pwrite64,ftruncate,flock,sendmsg,writev'
const sampled = Number(process.env.MOVE_KILLS ?? '4')

t.setTimeout(3_600_000)

type Side = 'send' | 'receive'

interface Strike {
  side: Side
  /** Before this call of a thread. Undefined: the trace only. */
  n?: number
}

/** Runs both sides, one of them traced. Resolves with its trace. */
async function moveTraced(move: Move, { side, n }: Strike): Promise<string> {
  const trace = path.join(move.root, 'trace')
  const inject = n === undefined ? [] : ['-e', `inject=${calls}:signal=KILL:when=${String(n)}`]
  // The VM is not traced.
  const tracer = ['strace', '-f', '-b', 'execve', '-qq', '-o', trace, '-e', `trace=${calls}`, ...inject]
  const start = (own: Side, host: MovingHost, other: MovingHost) => {
    const { runDirectory, checkpointDirectory, bhyve } = host
    const words = [process.execPath, script, own, runDirectory, checkpointDirectory, bhyve, other.name]
    const [command = '', ...args] = own === side ? [...tracer, ...words] : words
    return spawn(command, args, { env: childEnvironment(), stdio: ['pipe', 'pipe', 'ignore'] })
  }
  const [sender, receiver] = [start('send', move.a, move.b), start('receive', move.b, move.a)]
  for (const { stdin } of [sender, receiver]) stdin.on('error', () => undefined)
  sender.stdout.pipe(receiver.stdin)
  receiver.stdout.pipe(sender.stdin)
  await Promise.all([once(sender, 'exit'), once(receiver, 'exit')])
  return fs.readFileSync(trace, 'utf8')
}

/** The most calls that one thread makes. */
function longest(trace: string): number {
  const counts = new Map<string, number>()
  for (const line of trace.split('\n')) {
    const [pid = ''] = line.split(' ')
    if (/^\d+ +\w+\(/.test(line)) counts.set(pid, (counts.get(pid) ?? 0) + 1)
  }
  return Math.max(0, ...counts.values())
}

async function reset(move: Move, template: string): Promise<number> {
  await move.b.killAll()
  move.a.take(template)
  fs.rmSync(move.b.directory, { recursive: true, force: true })
  return startsOf(move.a) + startsOf(move.b)
}

async function killedAt(t: Test, move: Move, template: string, strike: Strike): Promise<void> {
  const before = await reset(move, template)
  const trace = await moveTraced(move, strike)
  const what = `${strike.side}, call ${String(strike.n)}`
  const isKilled = trace.includes('killed by SIGKILL')
  await assertOneHost(move, what)
  await drive(move, what, before)
  t.pass(`${what}${isKilled ? '' : ' (not reached)'}: ${move.a.moveOf() ?? ''}`)
}

for (const side of ['send', 'receive'] as const) {
  t.test(`${side}: killed before any call that changes something`, needs('strace'), async (t) => {
    const move = new Move(t)
    const template = await move.suspended()
    await reset(move, template)
    const count = longest(await moveTraced(move, { side }))
    t.strictSame(move.running, ['b'], 'without a kill')
    t.ok(count > 10, `${String(count)} calls`)
    const step = Math.max(1, count / sampled)
    const offset = Math.random() * step
    for (let at = offset; at < count; at += step)
      await killedAt(t, move, template, { side, n: Math.floor(at) + 1 })
  })
}
