/**
 * The process of either host is killed at each change on disk, each start of a process and each message. At every moment exactly
 * one host can be made to run the VM, and the next calls move it. `MOVE_KILLS=all` kills at every one of them, which takes
 * half an hour.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { Duplex } from 'node:stream'
import t, { type Test } from 'tap'
import { childEnvironment, until } from '../../support/index.js'
import { assertOneHost, drive, isUnconfirmed, startsOf } from '../../support/move_invariant.js'
import { Move } from '../../support/moving.js'

const script = path.join(import.meta.dirname, '../../support/move_side.mjs')
const preload = path.join(import.meta.dirname, '../../support/move_strike.cjs')
const killsAll = process.env.MOVE_KILLS === 'all'
/** Otherwise so many kills of each side. */
const sampled = 3

t.setTimeout(7_200_000)

interface Strike {
  side: 'send' | 'receive'
  /** The change, from 1 on. 0: none, the trace only. */
  at: number
  how: 'before' | 'after'
}

/** A situation in which a move is called. `begin` puts both hosts into it. */
interface Scene {
  begin: () => Promise<void> | void
  /** Ends the move after a kill, and rejects if it cannot be ended. */
  end: (what: string, startsBefore: number) => Promise<void>
}

/** Runs one side in its own process, and the other one in this process. Resolves with the changes of the first. */
async function moveStruck(move: Move, { side, at, how }: Strike): Promise<string[]> {
  const trace = path.join(move.root, 'trace')
  fs.writeFileSync(trace, '')
  const [own, other] = side === 'send' ? [move.a, move.b] : [move.b, move.a]
  const words = [script, side, own.runDirectory, own.checkpointDirectory, own.bhyve, other.name]
  const child = spawn(process.execPath, ['--require', preload, ...words], {
    env: childEnvironment({ MOVE_STRIKE: JSON.stringify({ at, how, trace }) }),
    stdio: ['pipe', 'pipe', 'ignore'],
  })
  const exited = once(child, 'exit')
  await otherSide(move, side, child)
  await exited
  return fs.readFileSync(trace, 'utf8').trim().split('\n')
}

async function otherSide({ a, b }: Move, side: Strike['side'], child: ChildProcess): Promise<void> {
  const connection = Duplex.from({ readable: child.stdout, writable: child.stdin })
  connection.on('error', () => undefined)
  const call =
    side === 'send'
      ? b.client.receiveVirtualMachine(connection, { bhyve: b.bhyve })
      : a.client.moveVirtualMachine('vm1', { host: 'b', connect: () => connection, bhyve: a.bhyve })
  await call.catch(() => undefined)
  await Promise.all([a.client.idle(), b.client.idle()])
}

/** A bhyve whose starter was killed right after its start is not in the list of starts yet. */
async function untilStarted(move: Move, trace: readonly string[], before: number, how: Strike['how']) {
  const spawned = trace.filter((what) => what === 'spawn').length
  const isStruck = trace.at(-1) === 'spawn' && how === 'before'
  if (spawned === 0 || isStruck) return
  await until(() => startsOf(move.a) + startsOf(move.b) > before, 'the start of bhyve')
}

async function killedAt(t: Test, move: Move, scene: Scene, strike: Strike): Promise<string> {
  await move.a.killAll()
  await move.b.killAll()
  await scene.begin()
  const before = startsOf(move.a) + startsOf(move.b)
  const trace = await moveStruck(move, strike)
  await untilStarted(move, trace, before, strike.how)
  const isReached = trace.length >= strike.at
  const reached = trace[strike.at - 1] ?? 'not reached'
  const what = `${strike.side}, ${strike.how} ${String(strike.at)}, ${reached}`
  await assertOneHost(move, what)
  await scene.end(what, before)
  t.ok(isReached, what)
  return what
}

const scenes: Record<string, (move: Move) => Promise<Scene>> = {
  'a move that succeeds': async (move) => {
    await move.suspended()
    return { begin: emptied(move), end: (what, before) => drive(move, what, before) }
  },
  'a bhyve that does not start': async (move) => {
    await move.suspended()
    move.b.writeBhyve('exit 4')
    return { begin: emptied(move), end: (what) => driveBack(move, what) }
  },
  'a move in doubt': async (move) => {
    await move.suspended()
    await move.run({}, { fault: { from: 'sender', index: 4, what: 'cut' } })
    t.strictSame([move.a.moveOf(), move.b.moveOf()], ['moved-to', 'arriving'])
    return { begin: move.snapshot(), end: (what, before) => drive(move, what, before) }
  },
  'a copy that was left': async (move) => {
    await move.suspended()
    await move.run({}, { fault: { from: 'receiver', index: 1, what: 'cut' } })
    t.strictSame([move.a.moveOf(), move.b.moveOf()], [undefined, 'arriving'])
    return { begin: move.snapshot(), end: (what, before) => drive(move, what, before) }
  },
}

/** As `snapshot`, but the receiver has not even a directory for its checkpoints. */
function emptied(move: Move): () => void {
  const restore = move.snapshot()
  return () => {
    restore()
    fs.rmSync(move.b.checkpointDirectory, { recursive: true })
  }
}

/** The receiver cannot start the VM, so it ends on the host that has sent it. */
async function driveBack(move: Move, what: string): Promise<void> {
  const errors: unknown[] = []
  for (let attempt = 0; attempt < 4; attempt++) {
    const { report } = await move.run()
    errors.push(report)
    await assertOneHost(move, `${what}, attempt ${String(attempt)}`)
    if (isUnconfirmed(report)) await giveUpThere(move)
    if (move.a.moveOf() === undefined) break
  }
  assert.deepEqual([await move.restorable(), move.running], [['a'], []], `${what}: ${errors.join('\n')}`)
}

/** What docs/move.md advises if nobody knows whether the guest has run there, and it cannot be restored there. */
async function giveUpThere({ a, b, args }: Move): Promise<void> {
  const again = { args, bhyve: b.bhyve, again: true }
  await assert.rejects(b.client.restore('vm1', 'suspend', again), { code: 'ERR_RESTORE_FAILED' })
  await b.client.destroyCheckpoint('vm1', 'suspend')
  await a.client.resolveMove('vm1', 'suspend', { runs: 'here' })
}

/** A power failure loses what is not fsynced. So the name of each file is durable before the other host relies on it. */
function unsynced(changes: readonly string[]): string[] {
  let renamed: string | undefined
  return changes.flatMap((what) => {
    if (what.startsWith('renameAt suspend')) renamed = what
    if (what === 'sync') renamed = undefined
    const isReliedOn = what === 'spawn' || what.startsWith('message')
    return isReliedOn && renamed !== undefined ? [`${what} after ${renamed}`] : []
  })
}

/** A sample has two of the scenes. */
function chosenScenes(): (keyof typeof scenes)[] {
  const [first = '', ...others] = Object.keys(scenes)
  return killsAll ? [first, ...others] : [first, others[Math.floor(Math.random() * others.length)] ?? first]
}

/** After one change the disk is as before the next one. Only a message and a process have an effect elsewhere. */
function strikesIn(side: Strike['side'], changes: readonly string[], isFirst: boolean): Strike[] {
  // Nothing differs between the scenes while the archive arrives.
  const arrival = {
    from: changes.indexOf('create manifest.arrived'),
    to: changes.indexOf('message prepared'),
  }
  return changes.flatMap((what, index) => {
    const at = index + 1
    if (!isFirst && side === 'receive' && index > arrival.from && index < arrival.to) return []
    const hasEffect = what === 'spawn' || what.startsWith('message') || at === changes.length
    return (hasEffect ? (['before', 'after'] as const) : (['before'] as const)).map((how) => ({
      side,
      at,
      how,
    }))
  })
}

function sampleOf<Item>(all: readonly Item[]): Item[] {
  if (killsAll) return [...all]
  const offset = Math.random()
  const chosen = Array.from({ length: sampled }, (_, index) => ((index + offset) / sampled) * all.length)
  return chosen.flatMap((at) => all[Math.floor(at)] ?? [])
}

for (const title of chosenScenes())
  for (const side of ['send', 'receive'] as const)
    t.test(`${title}: ${side} is killed`, async (t) => {
      const move = new Move(t)
      const scene = await scenes[title]?.(move)
      assert.ok(scene)
      await scene.begin()
      const changes = await moveStruck(move, { side, at: 0, how: 'before' })
      t.ok(changes.length > 10, `${String(changes.length)} changes`)
      t.strictSame(unsynced(changes), [], 'durable before each message')
      const strikes = strikesIn(side, changes, title === Object.keys(scenes)[0])
      for (const strike of sampleOf(strikes)) await killedAt(t, move, scene, strike)
    })
