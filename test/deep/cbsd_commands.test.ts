/** bcheckpoint, bsuspend and bpause as processes: text and exit status as in CBSD's manual, in CBSD's directories. */
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { cbsdLayout, type CheckpointClient, createClient } from 'bhyve-checkpoint'
import type { SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { CliWorld, type Result } from '../support/cli.js'
import { mounted } from '../support/image_world.js'
import { childEnvironment, scratch, tree } from '../support/index.js'

const programs = fileURLToPath(new URL('../../dist/cli/cbsd/', import.meta.url))

/** A work directory of CBSD with the VM freebsd1, and a directory of sockets. */
class CbsdWorld {
  readonly workdir: string
  readonly client: CheckpointClient
  readonly #world: CliWorld

  constructor(t: Test) {
    this.#world = new CliWorld(t)
    this.workdir = path.join(this.#world.root, 'jails')
    fs.mkdirSync(path.join(this.workdir, 'jails-system/freebsd1'), { recursive: true })
    const { runDirectory } = this.#world
    this.client = createClient({ runDirectory, checkpointDirectory: cbsdLayout({ workdir: this.workdir }) })
  }

  async start(vm: string, options: Omit<SimulatorOptions, 'vm' | 'runDirectory'> = {}): Promise<void> {
    await this.#world.start({ vm, ...options })
  }

  directoryOf(vm: string): string {
    return path.join(this.workdir, 'jails-system', vm, 'checkpoints')
  }

  /** Runs a command line, which is split at blanks outside of quotes. Presses Ctrl-C at the text `interruptAt`. */
  async run(line: string, env: Record<string, string> = {}, interruptAt?: string): Promise<Result> {
    const [name = '', ...words] = (line.match(/(?:'[^']*'|[^ '])+/g) ?? []).map((w) => w.replaceAll("'", ''))
    const settings = { cbsd_workdir: this.workdir, BHYVE_RUN_DIRECTORY: this.#world.runDirectory, ...env }
    const child = spawn(process.execPath, [path.join(programs, `${name}.js`), ...words], {
      env: childEnvironment(settings),
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: 60_000,
    })
    const result: Result = { status: null, stdout: '', stderr: '' }
    for (const stream of ['stdout', 'stderr'] as const) {
      child[stream].setEncoding('utf8').on('data', (text: string) => {
        result[stream] += text
        if (interruptAt !== undefined && result[stream].includes(interruptAt) && !child.killed)
          child.kill('SIGINT')
      })
    }
    await once(child, 'close')
    return { ...result, status: child.exitCode }
  }

  shell(script: string): Result {
    const env = { cbsd_workdir: this.workdir, BHYVE_RUN_DIRECTORY: this.#world.runDirectory }
    const options = { env: childEnvironment(env), encoding: 'utf8', timeout: 60_000 } as const
    return spawnSync('sh', ['-c', script], options)
  }

  async stateOf(vm: string): Promise<string | undefined> {
    return (await this.client.listVirtualMachines()).find((one) => one.vm === vm)?.state
  }
}

t.test("the examples of CBSD's manual", async (t) => {
  const world = new CbsdWorld(t)
  await world.start('freebsd1')
  const directory = world.directoryOf('freebsd1')
  const created = await world.run('bcheckpoint mode=create jname=freebsd1')
  t.match(created, { status: 0, stdout: `Checkpoint was created!: ${directory}/checkpoint.ckp\n` })
  t.match(created.stderr, /^freebsd1: [a-z]+$/m, 'progress')
  t.match(await world.run('bcheckpoint name=after_update jname=freebsd1 mode=create'), {
    status: 0,
    stdout: `Checkpoint was created!: ${directory}/after_update.ckp\n`,
  })
  t.strictSame(await world.run('bcheckpoint mode=list jname=freebsd1'), {
    status: 0,
    stdout: 'Created checkpoint for freebsd1:\nafter_update\ncheckpoint\n',
    stderr: '',
  })
  t.equal(await world.stateOf('freebsd1'), 'running')
  t.match(await world.run('bcheckpoint jname=freebsd1 mode=create name=after_update poweroff=1'), {
    status: 0,
    stdout: `Checkpoint was created!: ${directory}/after_update.ckp\n`,
  })
  t.equal(await world.stateOf('freebsd1'), 'off')
  t.match(await world.client.suspendedCheckpoint('freebsd1'), { name: 'after_update' })
  t.match(await world.run('bcheckpoint mode=create jname=freebsd1'), {
    status: 3,
    stdout: '',
    stderr: /^bcheckpoint: .*freebsd1.*\(ERR_VM_NOT_RUNNING\)$/m,
  })
  fs.writeFileSync(path.join(directory, 'notes.txt'), '')
  t.strictSame(await world.run('bcheckpoint mode=destroyall jname=freebsd1'), {
    status: 0,
    stdout: '',
    stderr: '',
  })
  t.strictSame(tree(directory), ['.staging/', 'notes.txt'], 'only checkpoints are removed')
  t.match(await world.run('bcheckpoint mode=list jname=freebsd1'), {
    status: 0,
    stdout: 'Created checkpoint for freebsd1:\n',
    stderr: /^VM 'freebsd1' has no checkpoints in CBSD's workdir /,
  })
})

t.test('suspend=1 and bsuspend power the VM off', async (t) => {
  for (const [line, name] of [
    ['bcheckpoint mode=create suspend=1 jname=freebsd1', 'checkpoint'],
    ['bsuspend jname=freebsd1', 'suspend'],
  ] as const) {
    const world = new CbsdWorld(t)
    await world.start('freebsd1')
    const stdout = `Checkpoint was created!: ${world.directoryOf('freebsd1')}/${name}.ckp\n`
    t.match(await world.run(line), { status: 0, stdout }, line)
    t.equal(await world.stateOf('freebsd1'), 'off')
  }
})

t.test('a failed save prints no success and changes no checkpoint', async (t) => {
  const world = new CbsdWorld(t)
  await world.start('freebsd1')
  await world.run('bcheckpoint mode=create jname=freebsd1')
  const { id } = await world.client.getCheckpoint('freebsd1', 'checkpoint')
  await world.start('bad', { fault: { at: 'memory', kind: 'no-space' } })
  const failed = await world.run("bcheckpoint mode=create jname='bad freebsd1 bad'")
  t.match(failed, { status: 7, stderr: /^bcheckpoint: .*'bad'.*\(ERR_CHECKPOINT_FAILED\)$/m })
  t.equal(
    failed.stdout,
    `Checkpoint was created!: ${world.directoryOf('freebsd1')}/checkpoint.ckp\n`,
    'the other VM is saved',
  )
  t.not((await world.client.getCheckpoint('freebsd1', 'checkpoint')).id, id)
  t.strictSame(await world.client.listCheckpoints('bad'), [])
})

t.test('masks and lists select VMs', async (t) => {
  const world = new CbsdWorld(t)
  for (const vm of ['web1', 'web2', 'db']) await world.start(vm)
  const line = (vm: string, name = 'checkpoint'): string =>
    `Checkpoint was created!: ${world.directoryOf(vm)}/${name}.ckp\n`
  t.match(await world.run("bcheckpoint mode=create jname='*'"), {
    status: 0,
    stdout: ['db', 'web1', 'web2'].map((vm) => line(vm)).join(''),
  })
  t.match(await world.run("bcheckpoint mode=create name=x jname='web2 w*b*1 web2'"), {
    status: 0,
    stdout: line('web2', 'x') + line('web1', 'x'),
  })
  t.match(await world.run("bcheckpoint mode=list jname='d* web1'"), {
    stdout: 'Created checkpoint for db:\ncheckpoint\n' + 'Created checkpoint for web1:\ncheckpoint\nx\n',
  })
  t.match(await world.run("bcheckpoint mode=destroyall jname='web*'"), { status: 0, stdout: '', stderr: '' })
  t.strictSame(await world.client.listStored(), ['db'])
  // A mask is no pattern, and its parts do not overlap.
  for (const mask of ['web.*', 'web1*1', '*eb1b1'])
    t.match(
      await world.run(`bcheckpoint mode=create jname='${mask}'`),
      { status: 3, stdout: '', stderr: /No running VM matches/ },
      mask,
    )
  t.match(await world.run("bcheckpoint mode=destroyall jname='x*'"), {
    status: 5,
    stderr: /No VM with checkpoints matches 'x\*'/,
  })
  t.match(await world.run("bsuspend jname='web1 db'"), {
    status: 0,
    stdout: line('web1', 'suspend') + line('db', 'suspend'),
  })
  t.match(await world.run("bsuspend jname='*'"), { status: 0, stdout: line('web2', 'suspend') })
})

t.test('bpause pauses, resumes and toggles', async (t) => {
  const world = new CbsdWorld(t)
  await world.start('freebsd1')
  const sleeps = 'bhyve domain is active, triggering to sleep\n'
  const continues = 'bhyve domain is sleeping, triggering to continue\n'
  for (const [argument, stdout, state] of [
    ['mode=on', '', 'paused'],
    ['mode=on', '', 'paused'],
    ['mode=off', '', 'running'],
    ['mode=auto', sleeps, 'paused'],
    ['', continues, 'running'],
    ['', sleeps, 'paused'],
    ['mode=off', '', 'running'],
  ] as const) {
    const line = `bpause jname=freebsd1 ${argument}`
    t.strictSame(await world.run(line), { status: 0, stdout, stderr: '' }, line)
    t.equal(await world.stateOf('freebsd1'), state, line)
  }
  t.match(await world.run('bpause jname=none'), { status: 3, stdout: '', stderr: /^bpause: VM 'none'/ })
})

t.test('a damaged checkpoint is listed and reported', async (t) => {
  const world = new CbsdWorld(t)
  await world.start('freebsd1')
  await world.run('bcheckpoint mode=create jname=freebsd1')
  fs.truncateSync(path.join(world.directoryOf('freebsd1'), 'checkpoint.ckp'), 1)
  t.match(await world.run('bcheckpoint mode=list jname=freebsd1'), {
    status: 0,
    stdout: 'Created checkpoint for freebsd1:\ncheckpoint\n',
    stderr: /^Checkpoint 'checkpoint' of VM 'freebsd1' is damaged: /,
  })
})

t.test('Ctrl-C cancels the save and leaves out the other VMs', async (t) => {
  const world = new CbsdWorld(t)
  await world.start('slow', { memoryBytes: 4 * 2 ** 20, writeRate: 4 * 2 ** 20 })
  await world.start('freebsd1')
  const line = "bcheckpoint mode=create jname='slow freebsd1'"
  const { status, stdout, stderr } = await world.run(line, {}, 'slow: saving')
  t.equal(status, 130, stderr)
  t.equal(stdout, '')
  t.match(stderr, /interrupted by SIGINT[^]*bhyve has finished the save\. Nothing was published/)
  t.notMatch(stderr, 'Still waiting')
  t.strictSame(await world.client.listStored(), [])
})

t.test('wrong arguments change nothing', async (t) => {
  const world = new CbsdWorld(t)
  await world.start('freebsd1')
  await world.run('bcheckpoint mode=create jname=freebsd1')
  const before = tree(world.workdir)
  for (const [line, status, message] of [
    ['bcheckpoint mode=constructor jname=freebsd1', 1, /^Unknown mode: constructor\n$/],
    ['bpause mode=wipe jname=freebsd1', 1, /^Unknown mode: wipe\n$/],
    [
      'bcheckpoint jname=freebsd1',
      2,
      /The argument 'mode=' is missing\nRun 'bcheckpoint --help' for help\n$/,
    ],
    ["bcheckpoint mode=list jname=' '", 2, /must name a VM/],
    ['bsuspend jname=freebsd1 name=x', 2, /Unknown argument 'name'/],
    [
      'bcheckpoint mode=destroyall jname=freebsd1 name=checkpoint',
      2,
      /'name' does not apply to mode=destroyall/,
    ],
    ['bcheckpoint mode=create jname=freebsd1 poweroff=1 suspend=0', 2, /'poweroff' and 'suspend' contradict/],
    ['bcheckpoint mode=create jname=freebsd1 name=../x', 2, /ERR_INVALID_CHECKPOINT_NAME/],
  ] as const)
    t.match(await world.run(line), { status, stdout: '', stderr: message }, line)
  t.strictSame(tree(world.workdir), before)
  t.equal(await world.stateOf('freebsd1'), 'running')
})

t.test('a missing work directory is an error and is not created', async (t) => {
  const world = new CbsdWorld(t)
  await world.start('freebsd1')
  const missing = path.join(world.workdir, 'none')
  const line = 'bcheckpoint mode=create jname=freebsd1'
  t.match(await world.run(line, { cbsd_workdir: missing }), {
    status: 2,
    stdout: '',
    stderr: `bcheckpoint: CBSD's work directory '${missing}' does not exist. Nothing was changed.`,
  })
  t.notOk(fs.existsSync(missing))
  const other = path.join(world.workdir, 'jails-system')
  t.match(await world.run(line, { cbsd_workdir: other }), {
    status: 2,
    stderr: /is not CBSD's work directory/,
  })
  t.strictSame(tree(other), ['freebsd1/'])
})

t.test('the configuration file has the directories', async (t) => {
  const world = new CbsdWorld(t)
  await world.start('freebsd1')
  const file = path.join(world.workdir, 'our.conf')
  fs.writeFileSync(file, `cbsd_workdir = ${world.workdir}\n`, { mode: 0o600 })
  t.match(await world.run(`bcheckpoint mode=create jname=freebsd1 --config ${file}`, { cbsd_workdir: '' }), {
    status: 0,
    stdout: `Checkpoint was created!: ${world.directoryOf('freebsd1')}/checkpoint.ckp\n`,
  })
})

const tmpfs = mounted(t, 'tmpfs', 4 * 2 ** 20)

t.test('bcheckpoint uses the memory stage', { skip: tmpfs.skip }, async (t) => {
  const world = new CbsdWorld(t)
  await world.start('freebsd1')
  const stage = path.join(tmpfs.directory, 'stage')
  const create = () => world.run('bcheckpoint mode=create jname=freebsd1', { BHYVE_MEMORY_STAGE: stage })
  const stdout = `Checkpoint was created!: ${world.directoryOf('freebsd1')}/checkpoint.ckp\n`
  const first = await create()
  t.match(first, { status: 0, stdout })
  t.match(
    first.stderr,
    /^freebsd1\/checkpoint: written on the disk: the size of the guest's RAM is not known/m,
  )
  const second = await create()
  t.match(second, { status: 0, stdout })
  t.notMatch(second.stderr, 'written on the disk')
  t.strictSame(tree(stage), [])
  t.match(await world.run('bsuspend jname=freebsd1', { BHYVE_MEMORY_STAGE: stage }), { status: 0 })
})

/** The shell blocks of docs/cbsd.md. */
const page = fs.readFileSync(fileURLToPath(new URL('../../docs/cbsd.md', import.meta.url)), 'utf8')
const blocks = [...page.matchAll(/^```sh\n(.*?)^```$/gms)].map((match) => match[1]!)

/** Makes a directory with the three commands in it. */
function commandDirectory(t: Test): string {
  const bin = scratch(t)
  for (const name of ['bcheckpoint', 'bsuspend', 'bpause']) {
    const program = `#!/bin/sh\nexec '${process.execPath}' '${path.join(programs, name)}.js' "$@"\n`
    fs.writeFileSync(path.join(bin, name), program, { mode: 0o755 })
  }
  return bin
}

t.test('the documented commands', async (t) => {
  const world = new CbsdWorld(t)
  await world.start('freebsd1')
  const [commands = ''] = blocks
  const { status, stdout, stderr } = world.shell(`set -e\nPATH=${commandDirectory(t)}:$PATH\n${commands}`)
  t.equal(status, 0, stderr)
  const created = (name: string): string =>
    `Checkpoint was created!: ${world.directoryOf('freebsd1')}/${name}.ckp\n`
  const list = 'Created checkpoint for freebsd1:\nafter_update\ncheckpoint\n'
  t.equal(stdout, created('checkpoint') + created('after_update') + list + created('checkpoint'))
  t.equal(await world.stateOf('freebsd1'), 'off')
})

t.test('the documented module of CBSD', async (t) => {
  const world = new CbsdWorld(t)
  await world.start('freebsd1')
  const dist = scratch(t)
  fs.mkdirSync(path.join(world.workdir, 'etc'))
  fs.mkdirSync(path.join(world.workdir, 'modules'))
  // As CBSD's initenv: a link for each command of each active module.
  const initenv = `while read -r active; do
    . ${dist}/cbsd/modules/$active/securecmd
    for command in $SECCMD; do ln -sfn ${dist}/cbsd/modules/$active/$command ${world.workdir}/modules/$command; done
  done <${world.workdir}/etc/modules.conf\n`
  const install = (blocks[1] ?? '')
    .replaceAll('/usr/local/bin/', `${commandDirectory(t)}/`)
    .replaceAll('/usr/local', dist)
    .replaceAll('~cbsd', world.workdir)
    .replace('cbsd initenv\n', initenv)
  t.match(install, initenv)
  // CBSD exports only its own name of the work directory, and its modules are first in the PATH.
  const use = `unset cbsd_workdir; export workdir=${world.workdir}; PATH=$workdir/modules:$PATH
    bcheckpoint mode=create jname='freebsd*' && bpause jname=freebsd1 && bpause jname=freebsd1 mode=off && bsuspend jname=freebsd1`
  const { status, stdout, stderr } = world.shell(`set -e\n${install}${use}`)
  t.equal(status, 0, stderr)
  const directory = world.directoryOf('freebsd1')
  t.equal(
    stdout,
    `Checkpoint was created!: ${directory}/checkpoint.ckp\n` +
      'bhyve domain is active, triggering to sleep\n' +
      `Checkpoint was created!: ${directory}/suspend.ckp\n`,
  )
})

t.test('every command has a help', async (t) => {
  const world = new CbsdWorld(t)
  for (const name of ['bcheckpoint', 'bsuspend', 'bpause']) {
    const help = await world.run(`${name} --help`)
    t.match(help, { status: 0, stdout: new RegExp(`^usage: ${name} jname=`), stderr: '' })
    for (const line of help.stdout.split('\n')) t.ok(line.length < 80, line)
  }
})
