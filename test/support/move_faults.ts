/** Strikes messages of a move, and drives the move to its end. */
import { type Test } from 'tap'
import { assertOneHost, drive, startsOf } from './move_invariant.js'
import { type Fault, Move } from './moving.js'

const kinds = ['lost', 'doubled', 'delayed', 'cut', 'cut after'] as const

interface Strike extends Fault {
  type: string
}

/** Strikes every `step`-th message and kind, from a random one on. */
export async function strikeMessages(t: Test, step: number): Promise<void> {
  const move = new Move(t)
  const template = await move.suspended()
  const strikes = await strikesOf(move)
  t.ok(strikes.length >= 40, `${String(strikes.length)} faults`)
  const offset = Math.floor(Math.random() * step)
  for (const one of strikes.filter((_, index) => index % step === offset))
    await strike(t, move, template, one)
}

async function strikesOf(move: Move): Promise<Strike[]> {
  const { wire } = await move.run()
  await move.b.killAll()
  const counts = { sender: 0, receiver: 0 }
  const messages = wire.messages.map(({ from, type }) => ({ from, type, index: counts[from]++ }))
  return messages.flatMap((message) => kinds.map((what) => ({ ...message, what })))
}

async function strike(t: Test, move: Move, template: string, fault: Strike): Promise<void> {
  move.a.take(template)
  await move.b.client.destroyAll('vm1')
  const before = startsOf(move.a) + startsOf(move.b)
  const { from, type, what } = fault
  const title = `'${type}' of the ${from} ${what}`
  const { report } = await move.run({}, { fault })
  await assertOneHost(move, title)
  // A stream that carries the archive in another order is refused.
  const isHarmless = what === 'doubled' || what === 'delayed'
  if (isHarmless && !['send', 'data'].includes(type)) t.match(report, { outcome: 'started' }, title)
  await drive(move, title, before)
  await move.b.killAll()
  t.pass(title)
}
