/** Recorded arguments on the command line: `--record-arguments`, `show`, `restore` without arguments. */
import t, { type Test } from 'tap'
import { simulatedBhyve } from 'bhyve-checkpoint/simulator'
import { CliWorld, type Result } from '../support/cli.js'
import { killed } from '../support/disk_stand_in.js'
import { socketOf, StandIn } from '../support/stand_in.js'

const password = 'hunter2'
const devices = ['-c2', '-m4M', '-s0,hostbridge', '-s', `29,fbuf,password=${password}`, '-s31,lpc']

class ArgumentsWorld extends CliWorld {
  readonly args = [...devices, '-o', `rundir=${this.runDirectory}`, 'vm1']

  async begun(t: Test): Promise<StandIn> {
    const vm = new StandIn(t, this.runDirectory, this.args)
    await vm.listening(socketOf(this.runDirectory, 'vm1', 'descriptor'))
    return vm
  }

  command(...args: string[]): Promise<Result> {
    return this.run({ args }, 'pipe')
  }
}

t.test('cli: recorded arguments are used by restore and never printed', async (t) => {
  const world = new ArgumentsWorld(t)
  const vm = await world.begun(t)
  const created = await world.command('create', 'vm1', 'a', '--record-arguments', '--', ...world.args)
  t.equal(created.status, 0, created.stderr)
  await vm.kill()
  const outputs = [
    created,
    await world.command('show', 'vm1', 'a'),
    await world.command('show', 'vm1', 'a', '--json'),
    await world.command('list', 'vm1', '--json'),
    await world.command('restore', 'vm1', 'a', '--plan', '--bhyve', simulatedBhyve),
    await world.command('restore', 'vm1', 'a', '--plan', '--json', '--bhyve', simulatedBhyve),
    await world.command('restore', 'vm1', 'a', '--json', '--plan', '--', ...world.args),
    await world.command('restore', 'vm1', 'a', '--bhyve', simulatedBhyve),
  ]
  for (const { status, stdout, stderr } of outputs) {
    t.equal(status, 0, stderr)
    t.notMatch(stdout + stderr, password)
  }
  t.match(outputs[1]?.stdout, /^arguments +recorded$/m)
  t.match(JSON.parse(outputs[2]?.stdout ?? ''), { argumentsRecorded: true })
  t.match(outputs[4]?.stdout, /^cd \S+ && .*29,fbuf,password=\*\*\*.* -r \S+a\.ckp vm1$/m)
  t.match(JSON.parse(outputs[5]?.stdout ?? ''), {
    type: 'plan',
    args: /password=\*\*\*/,
    directory: process.cwd(),
  })
  t.match(
    outputs[7]?.stdout,
    /restored vm1\/a: bhyve is process .*\n {2}with the arguments that the checkpoint records/,
  )
  await killed(Number(/process ([0-9]+)/.exec(outputs[7]?.stdout ?? '')?.[1]))
})

t.test('cli: suspend records the arguments of the running process', async (t) => {
  const world = new ArgumentsWorld(t)
  await world.begun(t)
  const suspended = await world.command('suspend', 'vm1', '--record-arguments')
  if (process.platform !== 'linux') {
    t.match(suspended, { status: 2, stderr: /'recordArguments' cannot be true/ })
    return
  }
  t.equal(suspended.status, 0, suspended.stderr)
  const restored = await world.command('restore', 'vm1', '--bhyve', simulatedBhyve)
  t.equal(restored.status, 0, restored.stderr)
  await killed(Number(/process ([0-9]+)/.exec(restored.stdout)?.[1]))
})

t.test('cli: restore without arguments reports that none are recorded', async (t) => {
  const world = new ArgumentsWorld(t)
  await world.begun(t)
  await world.command('create', 'vm1', 'a')
  const { status, stderr } = await world.command('restore', 'vm1', 'a')
  t.equal(status, 2)
  t.match(stderr, /no recorded bhyve arguments.*after '--'.*--record-arguments/)
  t.notMatch((await world.command('show', 'vm1', 'a')).stdout, 'arguments')
})

t.test('cli: options behind -- are not recorded', async (t) => {
  const world = new ArgumentsWorld(t)
  const wrong = ['--record-arguments', '--', ...world.args, '--run-directory=/x']
  const { status, stderr } = await world.command('create', 'vm1', 'a', ...wrong)
  t.equal(status, 2)
  t.match(stderr, /Move '--run-directory=\/x' before '--'/)
})
