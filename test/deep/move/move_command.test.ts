/** The commands move and receive, with a stand-in for ssh that runs the remote command on this host. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { childEnvironment } from '../../support/index.js'
import { Move, type MovingHost } from '../../support/moving.js'

t.setTimeout(180_000)

const program = path.join(import.meta.dirname, '../../../dist/cli/main.js')

/** Runs the command line with the directories of this host. */
async function run(
  host: MovingHost,
  args: readonly string[],
  env = {},
): Promise<{ status: number; output: string }> {
  const [command = '', ...others] = args
  const own = ['--run-directory', host.runDirectory, '--checkpoint-directory', host.checkpointDirectory]
  const words = [program, command, ...own, '--dialect', 'descriptor', ...others]
  const child = spawn(process.execPath, words, {
    env: childEnvironment(env),
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (bytes: Buffer) => (output += String(bytes)))
  const [status] = (await once(child, 'close')) as [number]
  return { status, output }
}

/** Writes a program that takes its options like ssh. It runs the remote command in a shell, as sshd does. */
function standIn({ root }: Move, before = ''): string {
  const file = path.join(root, 'ssh')
  fs.writeFileSync(file, `#!/bin/sh\n${before}\n[ "$1" = -p ] && shift 2\nshift\nexec sh -c "$*"\n`, {
    mode: 0o755,
  })
  return file
}

function remoteOf({ b }: Move): string {
  const own = `--run-directory ${b.runDirectory} --checkpoint-directory ${b.checkpointDirectory} --dialect descriptor`
  return `'${process.execPath}' '${program}' receive ${own} --bhyve '${b.bhyve}'`
}

t.test('move: plans, moves, and lists where the VM is', async (t) => {
  const move = new Move(t)
  await move.a.begin(move.args)
  const options = ['--ssh', `${standIn(move)} -p 22`, '--remote', remoteOf(move)]
  const plan = await run(move.a, ['move', 'vm1', 'b', '--dry-run', ...options, '--', ...move.args])
  t.match(plan, { status: 0, output: /nothing known prevents the move/ })
  t.strictSame(move.running, ['a'])
  const moved = await run(move.a, ['move', 'vm1', 'b', ...options, '--', ...move.args])
  t.match(moved, {
    status: 0,
    output: /^moved vm1\/suspend to b, offline for \d+\.\d s, bhyve is process \d+ there$/m,
  })
  t.strictSame(move.running, ['b'])
  t.match(await run(move.a, ['list', 'vm1']), { output: /moved to b/ })
  t.match(await run(move.b, ['show', 'vm1', 'suspend']), { output: /^move +moved from /m })
  const gone = await run(move.a, ['move', 'vm1', 'b', ...options])
  t.match(gone, { status: 8, output: /no-state/ }, 'the VM is not here any more')
})

t.test(
  'move: a connection that ends after the commit leaves a doubt, which the next call resolves',
  async (t) => {
    const move = new Move(t)
    await move.suspended()
    const cut = path.join(import.meta.dirname, '../../support/cut_after.mjs')
    const ssh = `${process.execPath} ${cut} release`
    const options = ['--remote', remoteOf(move)]
    const first = await run(move.a, ['move', 'vm1', 'b', '--ssh', ssh, ...options])
    t.match(first, { status: 10, output: /is in doubt.*ERR_MOVE_IN_DOUBT/s })
    t.strictSame([move.a.moveOf(), move.running.length], ['moved-to', 0])
    t.match(await run(move.a, ['doctor']), { output: /move-in-doubt|in doubt/ })
    const other = await run(move.a, ['move', 'vm1', 'c', '--ssh', standIn(move), ...options])
    t.match(other, { status: 10, output: /in doubt, so it cannot be moved to host 'c'/ })
    const plan = await run(move.a, ['move', 'vm1', 'b', '--dry-run', '--ssh', standIn(move), ...options])
    t.match(plan, { status: 0, output: /the copy is 'arriving'/ })
    t.match(await run(move.a, ['move', 'vm1', 'b', '--ssh', standIn(move), ...options]), {
      status: 0,
      output: /^moved vm1/m,
    })
    t.strictSame([move.a.moveOf(), move.running.join()], ['moved', 'b'])
  },
)

t.test('move: refuses hosts that are options, and receive a terminal and --json', async (t) => {
  const move = new Move(t)
  for (const host of ['-oProxyCommand=x', 'a b', ''])
    t.match(await run(move.a, ['move', 'vm1', host]), { status: 2 })
  t.match(await run(move.a, ['move', 'vm1']), { status: 2, output: /name of the other host/ })
  t.match(await run(move.a, ['receive', '--json']), { status: 2 })
  t.match(await run(move.a, ['move', 'vm1', '--resolve', 'there']), { status: 2 })
  t.match(await run(move.a, ['move', 'vm1', '--resolve', 'here']), { status: 5, output: /no move in doubt/ })
  const none = await run(move.a, ['move', 'vm1', 'b', '--ssh', '/nonexistent/ssh'])
  t.match(none, { status: 7, output: /ENOENT.*ERR_MOVE_FAILED/s })
})
