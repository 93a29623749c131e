/** The library's process, its guard, or both are killed at any moment of a save with onFrozen. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import path from 'node:path'
import t, { type Test } from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { guardOf, processState } from '../support/guards.js'
import { checkpointFiles, scratch, tree, until } from '../support/index.js'
import { start } from '../support/creating.js'

const MiB = 1024 * 1024
const rounds = 12

for (const [dialect, victims] of [
  // A bhyve that replies dies if nobody is left to read the reply.
  ['reply', ['manager', 'guard']],
  ['descriptor', ['both']],
] as const)
  void t.test(`${dialect}, killed: ${victims.join(' or ')}: the VM never stays frozen`, (t) =>
    kills(t, dialect, victims),
  )

async function kills(t: Test, dialect: 'reply' | 'descriptor', victims: readonly string[]): Promise<void> {
  const bhyve = await start(t, { memoryBytes: 4 * MiB, writeRate: 16 * MiB, dialect })
  const checkpointDirectory = scratch(t)
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory })
  const script = path.join(import.meta.dirname, '../support/freezing.mjs')
  let held = 0
  for (let round = 0; round < rounds; round++) {
    const victim = victims[round % victims.length]
    const child = spawn(process.execPath, [script, bhyve.runDirectory, checkpointDirectory, '600000', '60'], {
      stdio: ['ignore', 'pipe', 'ignore'],
    })
    const manager = child.pid ?? 0
    const exited = once(child, 'exit')
    const frozen = once(child.stdout, 'data')
    await until(() => guardOf(manager) !== undefined || child.exitCode !== null, 'the guard starts')
    // Half of the kills come before or during the request, the others during the hold or after it.
    if (round % 4 > 1) await Promise.race([frozen, exited])
    await new Promise((resolve) => setTimeout(resolve, (round * 37) % (round % 4 > 1 ? 100 : 400)))
    const guard = guardOf(manager)
    if (processState(bhyve.pid) === 'stopped') held++
    for (const pid of [victim === 'guard' ? undefined : manager, victim === 'manager' ? undefined : guard])
      if (pid !== undefined) kill(pid)
    await exited
    if (victim === 'both') await client.listCheckpoints('vm1')
    await until(
      () => processState(bhyve.pid) === 'running',
      `${String(victim)} killed: the VM runs again`,
      5_000,
    )
    for (const one of await client.listCheckpoints('vm1')) t.equal(one.state, 'complete', one.name)
  }
  t.ok(held > 0, `${String(held)} of ${String(rounds)} kills while the VM was held`)
  await client.createCheckpoint('vm1', { name: 'last' })
  await client.destroyAll('vm1')
  t.strictSame(checkpointFiles(path.join(checkpointDirectory, 'vm1')), [])
  t.strictSame(
    tree(checkpointDirectory).filter((name) => name.includes('hold')),
    [],
    'no record of a hold is left',
  )
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It has ended by itself.
  }
}
