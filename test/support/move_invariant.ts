/** What holds at every moment of a move: exactly one of the two hosts can be made to run the VM. */
import assert from 'node:assert/strict'
import { until } from './index.js'
import { type Move, type MovingHost } from './moving.js'

/** Rejects if the VM can run on both hosts, or on none. */
export async function assertOneHost(move: Move, what: string): Promise<void> {
  const { a, b, running } = move
  const restorable = await move.restorable()
  const states = [a.moveOf() ?? 'none', b.moveOf() ?? 'none']
  const where = `${what}: runs on [${running.join()}], restorable on [${restorable.join()}], ${states.join(' and ')}`
  assert.ok(running.length + restorable.length <= 1, where)
  if (running.length + restorable.length === 1) return
  // Nothing is restorable: the sender has committed, and the receiver has a copy that the next call releases.
  assert.equal(states[0], 'moved-to', where)
  assert.ok(['arriving', 'released', 'not-started'].includes(states[1] ?? ''), where)
}

/** Moves the VM again until that succeeds. Rejects if it was started more than once. `before`: earlier starts. */
export async function drive(move: Move, what: string, before: number): Promise<void> {
  const errors: unknown[] = []
  for (let attempt = 0; attempt < 4; attempt++) {
    if (move.b.running.length > 0 && move.a.moveOf() === 'moved') break
    const { report } = await move.run()
    if (report instanceof Error) errors.push(report.message)
    if (isUnconfirmed(report)) await restoreAgainUnlessRunning(move)
    await assertOneHost(move, `${what}, attempt ${String(attempt)}`)
  }
  assert.deepEqual(move.running, ['b'], `${what}: ${errors.join('\n')}`)
  assert.equal(startsOf(move.b) + startsOf(move.a), before + 1, `${what}: started once`)
  assert.equal(move.a.moveOf(), 'moved', what)
}

/** A process was killed after its restore record and before bhyve was started. Nobody but a person can know that. */
export function isUnconfirmed(report: unknown): boolean {
  return report instanceof Error && report.message.includes("the option 'again'")
}

async function restoreAgainUnlessRunning({ b, args }: Move): Promise<void> {
  if (b.running.length === 0) await b.client.restore('vm1', 'suspend', { args, bhyve: b.bhyve, again: true })
  else await until(() => b.isServing(), 'the socket of bhyve')
}

export function startsOf({ starts }: MovingHost): number {
  return starts.length
}
