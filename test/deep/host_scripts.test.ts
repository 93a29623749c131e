/** The scripts for rc(8) and periodic(8), with the built command line and simulated VMs. */
import { execFile, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { createClient, type CheckpointClient } from 'bhyve-checkpoint'
import { SimulatedBhyve, simulatedBhyve } from 'bhyve-checkpoint/simulator'
import { childEnvironment, scratch } from '../support/index.js'
import { needs } from '../support/programs.js'
import { isGone } from '../support/suspending.js'

const root = fileURLToPath(new URL('../../', import.meta.url))
const rcScript = path.join(root, 'rc.d/bhyve_checkpoint')
const periodicScript = path.join(root, 'periodic/daily/490.bhyve-checkpoint')
const program = path.join(root, 'dist/cli/main.js')

interface Ran {
  status: number
  output: string
}

/** A host with simulated VMs, a stand-in for rc.subr, and a stand-in for logger(1) that keeps its lines. */
class Host {
  readonly t: Test
  readonly root: string
  readonly run: string
  readonly checkpoints: string
  readonly arguments: string
  readonly client: CheckpointClient

  constructor(t: Test) {
    this.t = t
    this.root = fs.realpathSync(scratch(t))
    const inside = (name: string): string => path.join(this.root, name)
    ;[this.run, this.checkpoints, this.arguments] = ['run', 'checkpoints', 'arguments'].map(inside) as [
      string,
      string,
      string,
    ]
    for (const name of ['run', 'arguments', 'bin']) fs.mkdirSync(inside(name))
    this.put('bin/logger', '#!/bin/sh\necho "$@" >> "$LOG"\n')
    this.put('bin/bhyve-checkpoint', `#!/bin/sh\nexec '${process.execPath}' '${program}' "$@"\n`)
    this.put('bin/bhyve', `#!/bin/sh\nexec '${process.execPath}' '${simulatedBhyve}' "$@"\n`)
    this.put(
      'bhyve-checkpoint.conf',
      `# both scripts read this\n run_directory = ${this.run}\ncheckpoint_directory=${this.checkpoints} # here\n`,
    )
    this.client = createClient({ runDirectory: this.run, checkpointDirectory: this.checkpoints })
  }

  put(name: string, text: string): void {
    fs.writeFileSync(path.join(this.root, name), text, { mode: 0o755 })
  }

  async start(vm: string, options: object = {}): Promise<SimulatedBhyve> {
    const bhyve = await SimulatedBhyve.start({ vm, memoryBytes: 65536, runDirectory: this.run, ...options })
    this.t.teardown(() => bhyve.stop())
    return bhyve
  }

  /** One argument on each line. */
  record(vm: string): void {
    const args = ['-c', '1', '-m', '1M', '-s', '0,hostbridge', '-s', '31,lpc', '-o', `rundir=${this.run}`, vm]
    this.put(`arguments/${vm}`, args.join('\n'))
  }

  /** Runs the rc.d script, which reads the stand-in for rc.subr. */
  rc(command: string, settings: Record<string, string> = {}): Promise<Ran> {
    const variables = {
      enable: 'YES',
      config: path.join(this.root, 'bhyve-checkpoint.conf'),
      arguments: this.arguments,
      program: path.join(this.root, 'bin/bhyve-checkpoint'),
      restore_flags: `--bhyve ${this.root}/bin/bhyve`,
      ...settings,
    }
    const lines = Object.entries(variables).map(([name, value]) => `bhyve_checkpoint_${name}="${value}"\n`)
    this.put('rc.conf', lines.join(''))
    const standIn = path.join(root, 'test/support/rc.subr')
    const text = fs.readFileSync(rcScript, 'utf8').replace(/^\. \/etc\/rc\.subr$/m, `. '${standIn}'`)
    this.put('script', text)
    return this.#sh([path.join(this.root, 'script'), command])
  }

  periodic(settings: Record<string, string> = {}): Promise<Ran> {
    const variables = {
      enable: 'YES',
      config: path.join(this.root, 'bhyve-checkpoint.conf'),
      program: path.join(this.root, 'bin/bhyve-checkpoint'),
      ...settings,
    }
    const env = Object.entries(variables).map(([name, value]) => [`daily_bhyve_checkpoint_${name}`, value])
    return this.#sh([periodicScript], Object.fromEntries(env) as Record<string, string>)
  }

  #sh(words: string[], extra: Record<string, string> = {}): Promise<Ran> {
    const env = childEnvironment({
      PATH: `${this.root}/bin:${process.env.PATH ?? ''}`,
      LOG: path.join(this.root, 'log'),
      RC_CONF: path.join(this.root, 'rc.conf'),
      ...extra,
    })
    return new Promise((resolve) => {
      const child = execFile('sh', words, { env, timeout: 60_000 }, (_error, stdout, stderr) =>
        resolve({ status: child.exitCode ?? -1, output: stdout + stderr }),
      )
    })
  }

  get log(): string {
    const file = path.join(this.root, 'log')
    return fs.existsSync(file) ? fs.readFileSync(file, 'utf8') : ''
  }

  /** Ends the VMs that a restore has started. */
  async end(): Promise<string[]> {
    const machines = (await this.client.listVirtualMachines()).filter(({ state }) => state === 'running')
    for (const { pid } of machines) process.kill(pid!, 'SIGKILL')
    return machines.map(({ vm }) => vm)
  }
}

t.test('the scripts are executable and clean', needs('shellcheck'), (t) => {
  for (const script of [rcScript, periodicScript]) {
    t.ok(fs.statSync(script).mode & 0o100, 'rc(8) and periodic(8) skip other files')
    const { status, stdout } = spawnSync('shellcheck', [script], { encoding: 'utf8' })
    t.equal(status, 0, stdout)
  }
  const text = fs.readFileSync(rcScript, 'utf8')
  t.match(text, /^# PROVIDE: bhyve_checkpoint\n# REQUIRE: .*\n# BEFORE: vm cbsdd\n# KEYWORD: shutdown\n/m)
  t.equal(text.match(/^\. \/etc\/rc\.subr$/gm)?.length, 1)
  t.end()
})

t.test('rc: suspends all VMs at shutdown, and restores them at boot', async (t) => {
  const host = new Host(t)
  const vms = []
  for (const vm of ['vm1', 'vm2', 'vm 3']) {
    host.record(vm)
    vms.push(await host.start(vm))
  }
  const stopped = await host.rc('stop', { parallel: '2' })
  t.equal(stopped.status, 0, stopped.output)
  for (const { pid } of vms) t.ok(isGone(pid))
  for (const vm of ['vm1', 'vm2', 'vm 3']) {
    t.match(host.log, new RegExp(`^-t bhyve-checkpoint -p daemon.notice -- suspended ${vm}/suspend: `, 'm'))
    t.match(await host.client.suspendedCheckpoint(vm), { argumentsRecorded: true })
  }
  t.match(await host.rc('stop'), { status: 0, output: '' }, 'the sockets that bhyve has left are ignored')
  const started = await host.rc('start')
  t.equal(started.status, 0, started.output)
  t.match(host.log, /daemon\.notice -- restored vm1\/suspend/)
  t.match(await host.rc('start'), { status: 0 }, 'nothing is restored twice')
  t.strictSame((await host.end()).sort(), ['vm 3', 'vm1', 'vm2'])
})

t.test('rc: a VM whose suspend fails runs on, and the others are suspended', async (t) => {
  const host = new Host(t)
  for (const vm of ['vm1', 'vm2']) host.record(vm)
  const failing = await host.start('vm1', { fault: { at: 'kernel', kind: 'fail' } })
  const other = await host.start('vm2')
  const { status, output } = await host.rc('stop')
  t.equal(status, 1, output)
  t.match(host.log, /daemon\.err -- vm1: not suspended$/m)
  t.match(host.log, /ERR_SUSPEND_FAILED/)
  t.notOk(isGone(failing.pid))
  t.ok(isGone(other.pid))
})

t.test('rc: an invalid number of parallel suspends does not cost a VM', async (t) => {
  for (const parallel of ['0', 'many']) {
    const host = new Host(t)
    const vms = []
    for (const vm of ['vm1', 'vm2']) {
      host.record(vm)
      vms.push(await host.start(vm))
    }
    const { status, output } = await host.rc('stop', { parallel })
    t.equal(status, 0, output)
    for (const { pid } of vms) t.ok(isGone(pid))
    t.match(host.log, new RegExp(`daemon.err -- bhyve_checkpoint_parallel .*: ${parallel}$`, 'm'))
  }
})

t.test('rc: status lists the VMs, and no service jail is used', async (t) => {
  const host = new Host(t)
  await host.start('vm1')
  t.match(await host.rc('status', { svcj: 'YES' }), { status: 0, output: /^vm1 +running/m })
  const probe = fs.readFileSync(rcScript, 'utf8').indexOf('\nbhyve_checkpoint_svcj="NO"\n')
  t.ok(probe > fs.readFileSync(rcScript, 'utf8').indexOf('load_rc_config'), 'rc.conf cannot override it')
})

t.test('rc: only a suspended state with recorded arguments is restored', async (t) => {
  const host = new Host(t)
  await host.start('live')
  await host.client.createCheckpoint('live', { recordArguments: ['-c', '1', '-m', '1M', 'live'] })
  await host.end()
  await host.start('bare')
  await host.client.suspend('bare')
  const { status } = await host.rc('start')
  t.equal(status, 1)
  t.match(host.log, /daemon\.err -- bare: not restored\n.*recorded/)
  t.notMatch(host.log, /live/)
  t.strictSame(await host.end(), [])
  t.ok(await host.client.suspendedCheckpoint('bare'), 'the state is still there')
})

t.test('rc: the variables name the VMs and more options', async (t) => {
  const host = new Host(t)
  const kept = await host.start('vm1')
  host.record('vm2')
  const other = await host.start('vm2')
  t.match(await host.rc('stop', { enable: 'NO' }), { status: 0, output: '' }, 'not enabled')
  const refused = await host.rc('stop', { vms: 'vm2 missing', suspend_flags: '--dialect nonsense' })
  t.equal(refused.status, 1)
  t.match(host.log, /vm2: not suspended\n.*--dialect must be/)
  t.notOk(isGone(other.pid))
  t.match(await host.rc('onestop', { vms: 'vm2', enable: 'NO' }), { status: 0 })
  t.ok(isGone(other.pid))
  t.notOk(isGone(kept.pid), 'VMs that are not named are left alone')
})

t.test('periodic: reports by its exit status', async (t) => {
  const host = new Host(t)
  t.match(await host.periodic({ enable: 'NO' }), { status: 0, output: '' })
  t.match(await host.periodic(), { status: 2, output: /is not a directory/ })
  t.match(await host.periodic({ program: '/nonexistent' }), { status: 2, output: /is not executable/ })
  await host.start('vm1')
  for (const name of ['a', 'b', 'c']) await host.client.createCheckpoint('vm1', { name })
  const healthy = await host.periodic({ content: 'yes' })
  t.equal(healthy.status, 0, healthy.output)
  t.match(healthy.output, /Checkpoints of bhyve VMs:\nvm1\/a: complete/)
  const names = async (): Promise<string[]> =>
    (await host.client.listCheckpoints('vm1')).map(({ name }) => name)
  t.match(await host.periodic({ prune: '--keep-nonsense 1' }), { status: 2 })
  t.strictSame(await names(), ['a', 'b', 'c'])
  t.match(await host.periodic({ prune: '--keep-last 2' }), { status: 1, output: /removed vm1\/a/ })
  t.match(await host.periodic({ prune: '--keep-last 2' }), { status: 0 })
  fs.truncateSync(path.join(host.checkpoints, 'vm1', 'c.ckp'), 10)
  t.match(await host.periodic({ prune: '--keep-last 1' }), { status: 3, output: /vm1\/c/ })
  t.strictSame(await names(), ['b', 'c'], 'nothing of a VM with a damaged checkpoint is removed')
})

t.test('periodic: reads only what was not verified within the given time', async (t) => {
  const host = new Host(t)
  await host.start('vm1')
  for (const name of ['a', 'b']) await host.client.createCheckpoint('vm1', { name })
  await host.client.verifyCheckpoint('vm1', 'a', { depth: 'content' })
  const due = { content: 'yes', older_than: '6d' }
  const first = await host.periodic(due)
  t.equal(first.status, 0, first.output)
  t.match(
    first.output,
    /vm1\/a: complete \(structure; content verified .*, skipped\)\nvm1\/b: complete \(content/,
  )
  t.match(await host.periodic(due), { status: 0, output: /vm1\/b: complete \(structure; .* skipped/ })
  const all = await host.periodic({ content: 'yes' })
  t.match(all.output, /vm1\/a: complete \(content[^]*vm1\/b: complete \(content/, 'by default everything')
  t.match(await host.periodic({ older_than: '6d' }), { status: 0, output: /vm1\/a: complete \(structure\)/ })
  const wrong = await host.periodic({ content: 'yes', older_than: 'a week', prune: '--keep-last 1' })
  t.match(wrong, { status: 2, output: /--older-than must be a duration/ })
  t.equal((await host.client.listCheckpoints('vm1')).length, 2, 'nothing that was not verified is removed')
})
