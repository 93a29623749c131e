/** What an operator at a terminal and a job of cron depend on, with real processes. */
import path from 'node:path'
import t, { type Test } from 'tap'
import { createClient } from 'bhyve-checkpoint'
import type { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { CliWorld, type Result, withoutColours } from '../support/cli.js'
import { inMode, saved } from '../support/command_line.js'
import { putSet } from '../support/sets.js'
import { socketOf, StandIn } from '../support/stand_in.js'

const prompt = '[y/N] '

t.test('destroyall waits for a confirmation on a terminal', inMode.terminal, async (t) => {
  const world = new CliWorld(t)
  await saved(world)
  const client = createClient({ checkpointDirectory: world.checkpointDirectory })
  const answer = (keys: string): Promise<Result> =>
    world.run({ args: ['destroyall', 'vm1'], typeAt: { text: prompt, keys } }, 'terminal')
  for (const [keys, status] of [
    ['\n', 1],
    ['no\n', 1],
    ['\u0004', 1],
    ['\u0003', 130],
  ] as const) {
    const refused = await answer(keys)
    t.equal(refused.status, status, refused.stdout)
    t.match(refused.stdout, "Destroy all 2 checkpoints of VM 'vm1'")
    t.equal((await client.listCheckpoints('vm1')).length, 2)
  }
  const confirmed = await answer('y\n')
  t.equal(confirmed.status, 0)
  t.match(confirmed.stdout, /destroyed vm1\/a\r\ndestroyed vm1\/b/)
  await world.start({ vm: 'vm2' })
  await world.run({ args: ['create', 'vm2'] }, 'pipe')
  const yes = await world.run({ args: ['destroyall', 'vm2', '--yes'] }, 'terminal')
  t.match(yes, { status: 0, stdout: /^destroyed vm2/ })
  const none = await world.run({ args: ['destroyall', 'vm1'] }, 'terminal')
  t.equal(none.status, 0, 'there is nothing to confirm')
})

t.test('destroyall needs no confirmation without a terminal', async (t) => {
  const world = new CliWorld(t)
  await saved(world)
  const dry = await world.run({ args: ['destroyall', 'vm1', '--dry-run'] }, 'pipe')
  t.match(dry, { status: 0, stdout: /^would destroy vm1\/a/ })
  const { status, stdout } = await world.run({ args: ['destroyall', 'vm1'] }, 'pipe')
  t.equal(status, 0)
  t.equal(stdout, 'destroyed vm1/a\ndestroyed vm1/b\n')
})

async function hanging(t: Test): Promise<{ world: CliWorld; bhyve: SimulatedBhyve }> {
  const world = new CliWorld(t)
  const bhyve = await world.start({ vm: 'vm1', fault: { at: 'memory', kind: 'hang' } })
  return { world, bhyve }
}

t.test('create --no-wait ends although bhyve hangs', async (t) => {
  const { world, bhyve } = await hanging(t)
  const pid = String(bhyve.pid)
  const late = await world.run({ args: ['create', 'vm1', '--timeout', '4s', '--no-wait'] }, 'pipe')
  t.equal(late.status, 10, late.stderr)
  t.match(late.stderr, /timed out after 4s; bhyve completes the save.*This command does not wait for it/)
  t.ok(late.stderr.includes(`bhyve (process ${pid}) may still save VM 'vm1'`), late.stderr)
  t.notMatch(late.stderr, /bhyve has finished/)
  await bhyve.clearFault()
  const again = await world.run({ args: ['create', 'vm1'] }, 'pipe')
  t.equal(again.status, 0, again.stderr)
  const client = createClient({ checkpointDirectory: world.checkpointDirectory })
  t.equal((await client.listCheckpoints('vm1')).length, 1)
})

t.test('create --no-wait ends at the first Ctrl-C', async (t) => {
  const { world, bhyve } = await hanging(t)
  const args = ['create', 'vm1', '--no-wait', '--json']
  const running = await world.run({ args, interruptAt: '"saving"' }, 'pipe')
  t.equal(running.status, 130, running.stdout)
  const objects = running.stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { type: string; message?: string })
  t.match(objects.at(-2), { type: 'cancelled', begun: true })
  t.match(objects.at(-1), { type: 'notice', message: /process \d+\) may still save/ })
  await bhyve.clearFault()
})

t.test('suspend --no-wait: the next command publishes the state', async (t) => {
  const { world, bhyve } = await hanging(t)
  const args = ['suspend', 'vm1', '--no-wait', '--json']
  const late = await world.run({ args, interruptAt: '"saving"' }, 'pipe')
  t.equal(late.status, 130, late.stdout)
  t.match(late.stdout, "run 'bhyve-checkpoint list vm1', which publishes the state")
  await bhyve.clearFault()
  t.match(await bhyve.exited, { code: 5 })
  const listed = await world.run({ args: ['list', 'vm1'] }, 'pipe')
  t.match(listed, { status: 0, stdout: /^vm1 +suspend +complete .*suspended$/m })
})

t.test('the first checkpoint of a VM has a total', async (t) => {
  const world = new CliWorld(t)
  const args = ['-c2', '-m4M', '-s0,hostbridge', '-s31,lpc', '-o', `rundir=${world.runDirectory}`, 'vm1']
  const vm = new StandIn(t, world.runDirectory, args, { options: { writeRate: 4 * 2 ** 20 } })
  await vm.listening(socketOf(world.runDirectory, 'vm1', 'descriptor'))
  // On FreeBSD the arguments of a process cannot be read.
  const words = process.platform === 'linux' ? [] : ['--record-arguments', '--', ...args]
  const { stdout, status } = await world.run({ args: ['create', 'vm1', '--json', ...words] }, 'pipe')
  t.equal(status, 0, stdout)
  const saving = stdout.split('\n').filter((line) => line.includes('"phase":"saving"'))
  const totals = saving.map((line) => (JSON.parse(line) as { totalBytes?: number }).totalBytes)
  t.ok(totals.includes(4 * 2 ** 20), saving.join('\n'))
})

t.test('names are in natural order, and a narrow terminal shows every name', inMode.terminal, async (t) => {
  const world = new CliWorld(t)
  const vms = ['vm10', 'vm2', 'vm1', 'a-rather-long-name-of-a-virtual-machine']
  for (const vm of vms) putSet(path.join(world.checkpointDirectory, vm), 'nightly', { vm })
  const order = ['a-rather-long-name-of-a-virtual-machine', 'vm1', 'vm2', 'vm10']
  const listed = await world.run({ args: ['list'] }, 'pipe')
  const firsts = listed.stdout.split('\n').map((line) => line.split('  ')[0])
  t.same(firsts.slice(1, -1), order)
  const objects = (await world.run({ args: ['list', '--json'] }, 'pipe')).stdout.trim().split('\n')
  t.same(
    objects.slice(0, -1).map((line) => (JSON.parse(line) as { vm: string }).vm),
    order,
  )
  const pruned = await world.run({ args: ['prune', '--all', '--keep-last', '1'] }, 'pipe')
  t.same(
    pruned.stdout.split('\n').map((line) => line.split(':')[0]),
    [...order, ''],
  )
  const narrow = (await world.run({ args: ['list'], columns: 40 }, 'terminal')).stdout
    .split('\r\n')
    .map(withoutColours)
  for (const vm of vms) t.ok(narrow.includes(`VM       ${vm}`), vm)
  for (const line of narrow.filter((one) => !one.includes(vms[3]!))) t.ok(line.length <= 40, line)
})

t.test('--verbose prints the calls, --quiet only results and errors', async (t) => {
  const world = new CliWorld(t)
  await world.start({ vm: 'vm1' })
  const verbose = await world.run({ args: ['create', 'vm1', 'a', '-v'] }, 'pipe')
  t.match(verbose.stderr, /^create vm1\/a: started$/m)
  t.match(verbose.stderr, /^create vm1\/a: done after \d+ ms \{"memoryBytes":1048576,/m)
  const quiet = await world.run({ args: ['create', 'vm1', 'b', '-q'] }, 'pipe')
  t.same(quiet, { status: 0, stdout: '', stderr: '' })
  const failed = await world.run({ args: ['create', 'vm2', '-q'] }, 'pipe')
  t.equal(failed.status, 3)
  t.match(failed.stderr, /^bhyve-checkpoint: VM 'vm2' is not running: .*\(ERR_VM_NOT_RUNNING\)\n$/)
  const listed = await world.run({ args: ['list', '-q'] }, 'pipe')
  t.match(listed.stdout, /^vm1 +a .*\nvm1 +b /m, 'the list is the result')
  t.equal(listed.stderr, '')
})
