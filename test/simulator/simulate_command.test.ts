/** The command `simulate`, as a process. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { childEnvironment, rejection, scratch } from '../support/index.js'

const program = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url))

t.test(
  'simulate --separate --times: each VM fails once, ends alone, and the command ends last',
  async (t) => {
    const runDirectory = path.join(scratch(t), 'run')
    const faults = ['--fault', 'memory:fail', '--times', '1', '--separate']
    const args = [
      'simulate',
      'a',
      'b',
      '--run-directory',
      runDirectory,
      '--memory',
      '64K',
      '--json',
      ...faults,
    ]
    const command = spawn(process.execPath, [program, ...args], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: childEnvironment(),
    })
    t.teardown(() => command.kill('SIGKILL'))
    const exited = once(command, 'exit')
    const lines = createInterface({ input: command.stdout })[Symbol.asyncIterator]()
    const next = async () => JSON.parse((await lines.next()).value as string) as Record<string, unknown>

    const simulating = await next()
    t.match(simulating, { type: 'simulating', vms: ['a', 'b'], runDirectory })
    t.equal(new Set(simulating.pids as number[]).size, 2)
    t.notOk('pid' in simulating)
    const client = createClient({ runDirectory, checkpointDirectory: scratch(t) })
    for (const vm of ['b', 'a']) {
      t.equal((await rejection(client.suspend(vm))).code, 'ERR_SUSPEND_FAILED', vm)
      await client.suspend(vm)
      t.strictSame(await next(), { type: 'ended', vm, code: 5, signal: null })
    }
    t.strictSame(await exited, [0, null])
  },
)
