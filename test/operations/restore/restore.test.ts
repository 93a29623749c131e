/** Restores, against the stand-in for bhyve: round trips, guards, failures, and who holds what meanwhile. */
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { AbortError, type CheckpointClient, type CheckpointError, type Dialect } from 'bhyve-checkpoint'
import { simulatedBhyve, type SimulatedDialect } from 'bhyve-checkpoint/simulator'
import { PeerMemory } from '../../../dist/bhyve/peer_memory.js'
import { createClientIn } from '../../../dist/client/client.js'
import { isFailure } from '../../../dist/base/native.js'
import { realSurroundings } from '../../../dist/client/surroundings.js'
import { loadSimulatorNative } from '../../../dist/simulator/native_calls.js'
import {
  beginRestore,
  holdSet,
  lookAtSet,
  markRestored,
  takeBackMark,
} from '../../../dist/store/catalog/restore_records.js'
import {
  checkpointFiles,
  childEnvironment,
  contents,
  inlinePool,
  intercept,
  openDescriptors,
  rejection,
  runScript,
  scratch,
  until,
} from '../../support/index.js'
import { changeManifest, manifestOf, putSet } from '../../support/sets.js'

const native = loadSimulatorNative()

function isAlive(pid: number): boolean {
  const status = native.processStatus(pid)
  return !isFailure(status) && status.state !== 'zombie'
}

/** Without a connection, which a `struct` bhyve would answer by its last request. A socket has a file before anybody listens. */
function isListenedAt(socket: string): boolean {
  const sockets = '/proc/net/unix'
  if (!fs.existsSync(sockets)) return fs.existsSync(socket)
  const acceptsConnections = '00010000'
  const lines = fs.readFileSync(sockets, 'utf8').split('\n')
  return lines.some((line) => line.endsWith(` ${socket}`) && line.split(' ')[3] === acceptsConnections)
}

interface ScriptOptions {
  dialect?: SimulatedDialect
  /** It comes up only once this file is there. */
  gate?: string
  /** What it does instead of coming up. */
  instead?: string
  /** What a stand-in has no arguments for. */
  options?: object
}

/** A VM's whole world: folders, the VM's arguments, and executables that become bhyve under the same pid. */
class World {
  readonly t: Test
  readonly root: string
  readonly runDirectory: string
  readonly checkpointDirectory: string
  readonly directory: string
  readonly dialect: SimulatedDialect
  readonly args: string[]
  readonly client: CheckpointClient
  #scripts = 0

  constructor(t: Test, dialect: SimulatedDialect = 'descriptor') {
    this.t = t
    this.dialect = dialect
    this.root = scratch(t)
    this.runDirectory = path.join(this.root, 'run')
    this.checkpointDirectory = path.join(this.root, 'c')
    this.directory = path.join(this.checkpointDirectory, 'vm1')
    fs.mkdirSync(this.runDirectory)
    const devices = ['-s0,hostbridge', '-s', '3,virtio-blk,/d', '-s31,lpc']
    this.args = ['-c2', '-m4M', ...devices, '-o', `rundir=${this.runDirectory}`, 'vm1']
    this.client = this.newClient()
  }

  newClient(): CheckpointClient {
    const dialect: Dialect = this.dialect === 'reply' ? 'descriptor' : this.dialect
    const { runDirectory, checkpointDirectory } = this
    const surroundings = { ...realSurroundings, peers: new PeerMemory() }
    return createClientIn(surroundings, { runDirectory, checkpointDirectory, dialect })
  }

  /** An executable for `bhyve`. It leaves its pid beside it before anything else. */
  script({ dialect = this.dialect, gate, instead, options = {} }: ScriptOptions = {}): string {
    const file = path.join(this.root, `bhyve${String(this.#scripts++)}`)
    const wait = gate === undefined ? '' : `while [ ! -e '${gate}' ]; do sleep 0.02; done`
    const run = `exec '${process.execPath}' '${simulatedBhyve}' "$@"`
    const environment = `export NODE_OPTIONS= SIMULATED_BHYVE_DIALECT=${dialect} SIMULATED_BHYVE_OPTIONS='${JSON.stringify(options)}'`
    fs.writeFileSync(file, `#!/bin/sh\necho $$ >'${file}.pid'\n${environment}\n${wait}\n${instead ?? run}\n`)
    fs.chmodSync(file, 0o755)
    this.t.teardown(() => this.kill(this.pidOf(file)))
    return file
  }

  pidOf(script: string): number {
    const file = `${script}.pid`
    return fs.existsSync(file) ? Number(fs.readFileSync(file, 'utf8')) : 0
  }

  async started(script: string): Promise<number> {
    await until(() => this.pidOf(script) > 0, 'the start')
    return this.pidOf(script)
  }

  async kill(pid: number): Promise<void> {
    if (pid <= 0 || !isAlive(pid)) return
    process.kill(pid, 'SIGKILL')
    await until(() => !isAlive(pid), 'its end')
  }

  /** A fresh VM; its pid. */
  async begun(): Promise<number> {
    const script = this.script()
    spawn(script, this.args, { stdio: 'ignore' })
    const pid = await this.started(script)
    const isStruct = this.dialect === 'struct'
    const socket = path.join(this.runDirectory, isStruct ? 'checkpoint/vm1' : 'vm1')
    await until(() => (isStruct ? isListenedAt(socket) : this.isServed()), 'the socket')
    return pid
  }

  /** Somebody listens. */
  isServed(): boolean {
    const connection = native.connectStream(path.join(this.runDirectory, 'vm1'))
    if (!isFailure(connection)) native.close(connection)
    return !isFailure(connection)
  }

  /** The state of a fresh VM that was suspended. */
  async suspended(name = 'suspend'): Promise<void> {
    await this.begun()
    await this.client.suspend('vm1', { name })
  }

  /** A checkpoint of a fresh VM that is off by now; its socket file is left behind. */
  async saved(...names: string[]): Promise<void> {
    const pid = await this.begun()
    for (const name of names) await this.client.createCheckpoint('vm1', { name })
    await this.kill(pid)
  }

  /** What bhyve wrote, byte for byte. */
  digests(name: string): string[] {
    return ['', '.kern', '.meta'].map((extension) =>
      createHash('sha256')
        .update(fs.readFileSync(path.join(this.directory, `${name}.ckp${extension}`)))
        .digest('hex'),
    )
  }

  manifest(name: string): Record<string, unknown> {
    return manifestOf(this.directory, name)
  }
}

const codesOf = (error: { blockers?: readonly { code: string }[] }) => error.blockers?.map(({ code }) => code)

for (const dialect of ['path', 'descriptor', 'reply', 'struct'] as const) {
  t.test(`${dialect}: checkpoint, kill, restore, checkpoint`, async (t) => {
    const world = new World(t, dialect)
    await world.saved('g0')
    const first = world.digests('g0')
    for (const generation of [1, 2, 3]) {
      const bhyve = world.script()
      const restored = await world.client.restore('vm1', `g${generation - 1}`, { args: world.args, bhyve })
      t.equal(restored.pid, world.pidOf(bhyve), 'the child is the one that serves')
      t.match(await world.client.listVirtualMachines(), [{ vm: 'vm1', pid: restored.pid, state: 'running' }])
      t.equal(restored.logFile, path.join(world.directory, 'restore.log'))
      t.match(fs.readFileSync(restored.logFile, 'utf8'), /Restoring vm mem/)
      t.equal(fs.statSync(restored.logFile).mode & 0o777, 0o600)
      await world.client.createCheckpoint('vm1', { name: `g${generation}` })
      t.strictSame(world.digests(`g${generation}`), first, 'RAM, devices and CPUs are the same')
      await world.kill(restored.pid)
    }
    const { restoredAt } = await world.client.getCheckpoint('vm1', 'g0')
    t.ok(restoredAt instanceof Date)
    t.strictSame(world.manifest('g0').restores, [
      { at: restoredAt?.toISOString(), again: false, served: true },
    ])
    t.strictSame(await world.client.destroyAll('vm1'), ['g0', 'g1', 'g2', 'g3'])
    t.notOk(fs.existsSync(world.directory), 'the log goes with the directory')
  })
}

for (const [dialect, generations] of [
  ['path', 5],
  ['descriptor', 20],
  ['reply', 5],
] as const) {
  t.test(`${dialect}: suspended and restored for ${generations} generations`, async (t) => {
    const world = new World(t, dialect)
    await world.begun()
    let first: string[] | undefined
    let machine: unknown
    for (let generation = 1; generation <= generations; generation++) {
      const name = `g${generation}`
      const { devices, cpus, memoryBytes, poweredOff } = await world.client.suspend('vm1', { name })
      first ??= world.digests(name)
      machine ??= { devices, cpus, memoryBytes }
      t.strictSame(world.digests(name), first, `generation ${generation}: RAM, devices and CPUs are the same`)
      t.strictSame({ devices, cpus, memoryBytes }, machine)
      t.equal(poweredOff, true)
      t.match(await world.client.verifyCheckpoint('vm1', name, { depth: 'content' }), {
        ok: true,
        depth: 'content',
      })
      t.match(await world.client.suspendedCheckpoint('vm1'), { name })
      const bhyve = world.script()
      const restored = await world.client.restore('vm1', name, { args: world.args, bhyve })
      t.equal(await world.client.suspendedCheckpoint('vm1'), undefined)
      t.match(await world.client.listVirtualMachines(), [{ vm: 'vm1', pid: restored.pid, state: 'running' }])
    }
  })
}

t.test('whoever restored a VM can wait for its end', async (t) => {
  const world = new World(t)
  await world.suspended()
  const restored = await world.client.restore('vm1', 'suspend', { args: world.args, bhyve: world.script() })
  const { exited } = restored
  await world.client.suspend('vm1', { name: 'again' })
  t.strictSame(await exited, { code: 5, signal: null })
  t.strictSame(await restored.exited, { code: 5, signal: null }, 'also once it is over')
  t.strictSame(Object.keys(restored).sort(), ['logFile', 'pid'], 'looking at it waits for nothing')
})

t.test('a suspended VM is resumed once, and again only when told', async (t) => {
  const world = new World(t)
  await world.suspended()
  changeManifest(world.directory, 'suspend', { ofNewerReleases: { kept: true } })
  const once = await world.client.restore('vm1', 'suspend', { args: world.args, bhyve: world.script() })
  const running = await rejection(
    world.client.restore('vm1', 'suspend', { args: world.args, bhyve: world.script(), again: true }),
  )
  t.match(running, { code: 'ERR_RESTORE_BLOCKED', vm: 'vm1', checkpoint: 'suspend' })
  t.strictSame(codesOf(running), ['already-running'])
  await world.kill(once.pid)
  const before = contents(world.directory)
  const refused = await rejection(
    world.client.restore('vm1', 'suspend', { args: world.args, bhyve: world.script() }),
  )
  t.strictSame(codesOf(refused), ['already-restored'])
  t.match(refused.message, /option 'again'/)
  t.strictSame(contents(world.directory), before, 'nothing was changed')
  const again = await world.client.restore('vm1', 'suspend', {
    args: world.args,
    bhyve: world.script(),
    again: true,
  })
  t.not(again.pid, once.pid)
  t.match(world.manifest('suspend'), { poweredOff: true, ofNewerReleases: { kept: true } })
  t.match(world.manifest('suspend').restores, [
    { again: false, served: true },
    { again: true, served: true },
  ])
})

t.test('a disk that went on after a suspend', async (t) => {
  const world = new World(t)
  await world.suspended()
  const disk = path.join(world.root, 'disk.img')
  fs.writeFileSync(disk, 'newer')
  fs.utimesSync(disk, 4e9, 4e9)
  const args = world.args.map((word) => word.replace('/d', disk))
  const refused = await rejection(world.client.restore('vm1', 'suspend', { args, bhyve: world.script() }))
  t.strictSame(codesOf(refused), ['disk-newer'])
  t.equal(world.manifest('suspend').restoredAt, undefined)
  // The set's time has whole milliseconds, the disk's a fraction: in the same one it is no newer.
  const quietMs = (await world.client.getCheckpoint('vm1', 'suspend')).createdAt.getTime()
  fs.utimesSync(disk, (quietMs + 0.6) / 1000, (quietMs + 0.6) / 1000)
  t.not(fs.statSync(disk).mtimeMs % 1, 0)
  await world.client.restore('vm1', 'suspend', { args, bhyve: world.script() })
})

t.test('a restoring process that is killed once bhyve has started', async (t) => {
  const world = new World(t)
  await world.suspended()
  const gate = path.join(world.root, 'gate')
  const bhyve = world.script({ gate })
  const script = fileURLToPath(new URL('../../support/restoring.mjs', import.meta.url))
  const manager = spawn(
    process.execPath,
    [script, world.runDirectory, world.checkpointDirectory, 'suspend', bhyve],
    { env: childEnvironment(), stdio: 'ignore' },
  )
  const pid = await world.started(bhyve)
  const gone = new Promise((resolve) => manager.once('exit', resolve))
  manager.kill('SIGKILL')
  await gone
  t.ok(isAlive(pid), 'bhyve lives on')
  const other = { args: world.args, bhyve: world.script() }
  t.strictSame(codesOf(await rejection(world.client.restore('vm1', 'suspend', other))), ['already-restored'])
  fs.writeFileSync(gate, '')
  await until(async () => (await world.client.listVirtualMachines())[0]?.state === 'running', 'the VM')
  t.strictSame(codesOf(await rejection(world.client.restore('vm1', 'suspend', other))), [
    'already-running',
    'already-restored',
  ])
  await world.client.createCheckpoint('vm1', { name: 'later' })
  t.strictSame(world.digests('later'), world.digests('suspend'))
  // Nobody saw it come up: the set may be all there is of the VM.
  t.strictSame((await world.client.pruneCheckpoints('vm1', { maxBytes: 0 })).removed, [])
  t.match(await world.client.suspendedCheckpoint('vm1'), { name: 'suspend' })
})

t.test('the VM survives the end of the process that restored it, which ends by itself', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const bhyve = world.script()
  const ended = await runScript('restoring.mjs', [world.runDirectory, world.checkpointDirectory, 'a', bhyve])
  t.match(ended, { code: 0, signal: null, stderr: '' })
  const { pid } = JSON.parse(ended.stdout) as { pid: number }
  t.equal(pid, world.pidOf(bhyve))
  await world.client.createCheckpoint('vm1', { name: 'b' })
  t.strictSame(world.digests('b'), world.digests('a'))
})

t.test('a session of its own, nothing of ours but the log, and no zombie', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const look = `ls -l /proc/$$/fd; cut -d' ' -f5,6 /proc/$$/stat; cat`
  const error = await rejection(
    world.client.restore('vm1', 'a', {
      args: world.args,
      bhyve: world.script({ instead: `${look}; exit 3` }),
    }),
  )
  const output = error.reply ?? ''
  t.match(output, /0 -> \/dev\/null/, 'and standard input is at its end')
  t.match(output, /1 -> .*restore\.log/)
  t.match(output, /2 -> .*restore\.log/)
  t.notMatch(output, /\.staging|-> \S*\/vm1$/m)
  const [, group, session] = /^(\d+) (\d+)$/m.exec(output) ?? []
  t.equal(group, session)
  t.not(group, String(process.pid))
  const { pid } = await world.client.restore('vm1', 'a', { args: world.args, bhyve: world.script() })
  process.kill(pid, 'SIGKILL')
  await until(() => isFailure(native.processStatus(pid)), 'no zombie')
})

t.test('bhyve gets a small environment, or the one that is named', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const bhyve = path.join(world.root, 'env')
  fs.writeFileSync(bhyve, `#!/bin/sh\nenv | sed -n 's/^\\([A-Za-z_]*\\)=.*/\\1/p'\nexit 3\n`, { mode: 0o755 })
  // The shell adds some, and the test runner to every child: its values are long, and of many lines.
  const added = /^(PWD|OLDPWD|SHLVL|_.*|NODE_OPTIONS)$/
  const namesOf = async (...more: string[]): Promise<string[]> => {
    const words = [world.runDirectory, world.checkpointDirectory, 'a', bhyve, 'once', ...more]
    const { stdout } = await runScript('restoring.mjs', words, { DATABASE_PASSWORD: 'secret', TZ: 'UTC' })
    const { reply } = JSON.parse(stdout) as { reply: string }
    const names = [...reply.matchAll(/^\w+$/gm)].map(([name]) => name)
    return names.filter((name) => !added.test(name)).sort()
  }
  const allowed = ['HOME', 'LANG', 'PATH', 'TZ']
  t.strictSame(
    await namesOf(),
    allowed.filter((name) => name === 'TZ' || process.env[name] !== undefined),
  )
  t.strictSame(await namesOf(JSON.stringify({ PATH: '/usr/bin:/bin', MALLOC_CONF: 'junk:true' })), [
    'MALLOC_CONF',
    'PATH',
  ])
})

t.test('a bhyve that ends before it serves', async (t) => {
  const world = new World(t)
  await world.saved('a', 'bare')
  changeManifest(world.directory, 'a', { ofNewerReleases: 1 })
  fs.rmSync(path.join(world.directory, 'bare.ckp.manifest'))
  const before = world.manifest('a')
  const restoring = (bhyve: string, name = 'a', again = false) =>
    rejection(world.client.restore('vm1', name, { args: world.args, bhyve, again }))
  const refused = await restoring(world.script({ options: { suspendExitCode: 999 } }))
  t.match(refused, { code: 'ERR_RESTORE_FAILED', vm: 'vm1', checkpoint: 'a', vmState: 'off' })
  t.match(refused.message, /ended with status 64.*SIMULATED_BHYVE/s)
  t.match(refused.reply, /suspendExitCode/)
  t.equal(refused.path, path.join(world.directory, 'restore.log'))
  t.strictSame(world.manifest('a'), before, 'taken back')
  t.match(await restoring(world.script({ instead: 'kill -KILL $$' })), {
    message: /ended by SIGKILL.*said nothing/,
  })
  t.match(await restoring(world.script({ instead: 'exit 0' })), { message: /ended with status 0/ })
  const broken = path.join(world.root, 'broken')
  fs.writeFileSync(broken, '#!/nonexistent/sh\n', { mode: 0o755 })
  t.match(await restoring(broken), { code: 'ERR_RESTORE_FAILED', cause: { code: 'ENOENT' } })
  t.strictSame(world.manifest('a'), before)
  t.match(await restoring(world.script({ instead: 'exit 1' }), 'bare'), { code: 'ERR_RESTORE_FAILED' })
  t.equal((await world.client.getCheckpoint('vm1', 'bare')).restoredAt, undefined)
  const { pid } = await world.client.restore('vm1', 'a', { args: world.args, bhyve: world.script() })
  await world.kill(pid)
  const once = world.manifest('a')
  t.match(await restoring(world.script({ instead: 'exit 1' }), 'a', true), { code: 'ERR_RESTORE_FAILED' })
  t.strictSame(world.manifest('a'), once, 'what was before stays')
  t.strictSame(
    checkpointFiles(world.directory).filter((file) => file.startsWith('.staging')),
    [],
  )
})

t.test('the last words are short, and no control characters', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const instead = `i=0; while [ $i -lt 3000 ]; do echo "line $i"; i=$((i+1)); done; printf 'the \\033[31mend\\r\\n'; exit 1`
  const { reply, message } = await rejection(
    world.client.restore('vm1', 'a', { args: world.args, bhyve: world.script({ instead }) }),
  )
  t.match(reply, /line 2999\nthe {2}\[31mend$/)
  t.ok((reply?.split('\n').length ?? 99) <= 20)
  t.ok(message.length < 6000)
  t.ok(fs.statSync(path.join(world.directory, 'restore.log')).size > 20_000, 'all of it is in the file')
})

t.test('damaged sets are not started', async (t) => {
  const world = new World(t)
  await world.saved('a')
  fs.truncateSync(path.join(world.directory, 'a.ckp.meta'), 100)
  const before = contents(world.directory)
  const bhyve = world.script()
  const error = await rejection(world.client.restore('vm1', 'a', { args: world.args, bhyve }))
  t.match(error, { code: 'ERR_RESTORE_BLOCKED', blockers: [{ code: 'damaged' }] })
  t.strictSame(contents(world.directory), before)
  t.equal(world.pidOf(bhyve), 0)
  const none = await rejection(world.client.restore('vm1', 'none', { args: world.args, bhyve }))
  t.match(none, { code: 'ERR_CHECKPOINT_NOT_FOUND', vm: 'vm1', checkpoint: 'none' })
})

t.test('while bhyve comes up, nobody takes the set away', async (t) => {
  const world = new World(t)
  await world.saved('a', 'b')
  const gate = path.join(world.root, 'gate')
  const bhyve = world.script({ gate })
  const digests = world.digests('a')
  const restoring = world.client.restore('vm1', 'a', { args: world.args, bhyve })
  await world.started(bhyve)
  const events: string[] = []
  const destroying = world.newClient().destroyCheckpoint('vm1', 'a')
  void destroying.then(() => events.push(world.isServed() ? 'destroyed' : 'destroyed too early'))
  void restoring.then(() => events.push('restored'))
  // Readers share the lock, so that this ends while the destroying waits.
  for (let look = 0; look < 20; look++) {
    t.match(await world.client.getCheckpoint('vm1', 'a'), { restoredAt: Date })
    t.strictSame(world.digests('a'), digests)
  }
  t.ok(fs.lstatSync(path.join(world.runDirectory, 'vm1')).isSocket(), 'the stale socket is not it')
  t.strictSame(events, [])
  fs.writeFileSync(gate, '')
  const { pid } = await restoring
  await destroying
  // Once bhyve serves, the set may go, and which of the two calls hears of it first does not matter.
  t.strictSame(events.sort(), ['destroyed', 'restored'])
  t.ok(isAlive(pid))
  await world.client.createCheckpoint('vm1', { name: 'c' })
  t.strictSame(world.digests('c'), digests)
})

t.test('only a socket of the child is taken for its own', async (t) => {
  for (const dialect of ['descriptor', 'struct'] as const) {
    const world = new World(t, dialect)
    await world.saved('a')
    const gate = path.join(world.root, 'gate')
    const bhyve = world.script({ gate })
    let isRestored = false
    // This one knows nobody yet.
    const restoring = world.newClient().restore('vm1', 'a', { args: world.args, bhyve })
    void restoring.then(() => (isRestored = true))
    await world.started(bhyve)
    const socket = path.join(world.runDirectory, dialect === 'struct' ? 'checkpoint/vm1' : 'vm1')
    t.ok(fs.lstatSync(socket).isSocket(), 'the one of the dead')
    if (dialect === 'descriptor') {
      fs.rmSync(socket)
      const listener = native.simulator.listenStream(socket, 5)
      if (isFailure(listener)) throw new Error('listen')
      const takeAll = () => {
        let taken = 0
        for (
          let one = native.simulator.accept(listener);
          !isFailure(one);
          one = native.simulator.accept(listener)
        ) {
          native.close(one)
          taken++
        }
        return taken
      }
      await until(() => takeAll() === 1, 'a question to the stranger')
      for (let look = 0; look < 50; look++) await world.client.getCheckpoint('vm1', 'a')
      t.equal(takeAll(), 0, 'asked once')
      native.close(listener)
    } else {
      for (let look = 0; look < 50; look++) await world.client.getCheckpoint('vm1', 'a')
    }
    t.notOk(isRestored)
    fs.writeFileSync(gate, '')
    t.equal((await restoring).pid, world.pidOf(bhyve))
  }
})

t.test('two restores at once: one starts', async (t) => {
  for (const [names, again] of [
    [['a', 'a'], false],
    [['a', 'a'], true],
    [['a', 'b'], false],
  ] as const) {
    const world = new World(t)
    await world.saved('a', 'b')
    const scripts = names.map(() => world.script())
    const calls = names.map((name, index) =>
      world.newClient().restore('vm1', name, { args: world.args, bhyve: scripts[index], again }),
    )
    const outcomes = await Promise.allSettled(calls)
    const failed = outcomes.filter((outcome) => outcome.status === 'rejected')
    t.equal(failed.length, 1, `${names.join()} ${again}`)
    t.match(failed[0]?.reason, { code: 'ERR_RESTORE_BLOCKED' })
    t.ok(codesOf(failed[0]?.reason as CheckpointError)?.includes('already-running'))
    t.equal(scripts.filter((script) => world.pidOf(script) > 0).length, 1)
    const restores = [...new Set(names)].flatMap((name) => (world.manifest(name).restores ?? []) as unknown[])
    t.equal(restores.length, 1, 'marked once')
  }
})

const needsRoot = { skip: process.geteuid?.() === 0 ? false : 'needs root' }

t.test('another user who holds a lock on the directory keeps nobody from restoring', needsRoot, async (t) => {
  const world = new World(t)
  await world.saved('a')
  for (const folder of [world.root, world.checkpointDirectory, world.directory]) fs.chmodSync(folder, 0o755)
  const holder = spawn('flock', ['--exclusive', world.directory, 'sh', '-c', 'echo held; exec cat'], {
    uid: 65534,
    gid: 65534,
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  t.teardown(() => holder.kill())
  await once(holder.stdout, 'data')
  const { pid } = await world.client.restore('vm1', 'a', { args: world.args, bhyve: world.script() })
  t.ok(isAlive(pid))
  t.strictSame(fs.readdirSync(path.join(world.directory, '.staging')), [], 'the lock went with the restore')
})

t.test('the lock of a restore', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const staging = path.join(world.directory, '.staging')
  const lock = path.join(staging, 'restore.lock')
  const gate = path.join(world.root, 'gate')
  const bhyve = world.script({ gate })
  const script = fileURLToPath(new URL('../../support/restoring.mjs', import.meta.url))
  const words = [script, world.runDirectory, world.checkpointDirectory, 'a', bhyve]
  const manager = spawn(process.execPath, words, { env: childEnvironment(), stdio: 'ignore' })
  await world.started(bhyve)
  t.ok(fs.existsSync(lock))
  t.match(await world.client.listCheckpoints('vm1'), [{ name: 'a', state: 'complete' }])
  t.throws(() => beginRestore(world.directory, 'a'), { code: 'ERR_CHECKPOINT_BUSY', path: lock })
  t.ok(fs.existsSync(lock), 'it is left alone while it is held')
  manager.kill('SIGKILL')
  await once(manager, 'exit')
  t.ok(fs.existsSync(lock))
  await world.kill(world.pidOf(bhyve))
  t.match(await world.client.listCheckpoints('vm1'), [{ name: 'a' }])
  t.notOk(fs.existsSync(lock), 'recovery removes what a killed one has left')
  await world.client.restore('vm1', 'a', { args: world.args, bhyve: world.script(), again: true })
  t.strictSame(fs.readdirSync(staging), [])
})

t.test('a restore does not make listing take the lock alone', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const { runDirectory, checkpointDirectory, directory } = world
  const pool = inlinePool()
  const surroundings = { ...realSurroundings, pool: () => pool }
  const client = createClientIn(surroundings, { runDirectory, checkpointDirectory })
  const { turn } = beginRestore(directory, 'a').descriptors
  const modes: unknown[] = []
  intercept(t, 'lock', (_, mode) => void modes.push(mode))
  const modesOfListing = async (): Promise<unknown[]> => {
    modes.length = 0
    t.match(await client.listCheckpoints('vm1'), [{ name: 'a' }])
    return [...new Set(modes)]
  }
  t.strictSame(await modesOfListing(), ['shared'])
  native.close(turn)
  t.strictSame(await modesOfListing(), ['shared', 'exclusive'], 'what a dead one has left is removed')
  t.strictSame(await modesOfListing(), ['shared'])
  t.strictSame(fs.readdirSync(path.join(directory, '.staging')), [])
  const again = beginRestore(directory, 'a').descriptors.turn
  t.strictSame(await client.destroyAll('vm1'), ['a'])
  t.ok(fs.existsSync(directory), 'a restore that is under way keeps the directory')
  native.close(again)
  t.strictSame(await client.destroyAll('vm1'), [])
  t.notOk(fs.existsSync(directory))
})

t.test('two processes at once: one starts', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const scripts = [0, 1, 2].map(() => world.script())
  const ended = await Promise.all(
    scripts.map((bhyve) => {
      return runScript('restoring.mjs', [world.runDirectory, world.checkpointDirectory, 'a', bhyve, 'again'])
    }),
  )
  const outcomes = ended.map(({ stdout }) => JSON.parse(stdout) as { pid?: number; code?: string })
  t.equal(outcomes.filter(({ pid }) => pid !== undefined).length, 1)
  t.equal(outcomes.filter(({ code }) => code === 'ERR_RESTORE_BLOCKED').length, 2)
  t.equal(scripts.filter((script) => world.pidOf(script) > 0).length, 1)
})

t.test('a cancel or a timeout stops the waiting, not bhyve', async (t) => {
  for (const [how, comesUp] of [
    ['abort', true],
    ['abort', false],
    ['timeout', true],
  ] as const) {
    const world = new World(t)
    await world.saved('a')
    const gate = path.join(world.root, 'gate')
    const bhyve = world.script(comesUp ? { gate } : { gate, instead: 'exit 1' })
    const controller = new AbortController()
    const call = world.client.restore('vm1', 'a', {
      args: world.args,
      bhyve,
      ...(how === 'abort' ? { signal: controller.signal } : { timeout: 6_000 }),
    })
    const outcome = call.catch((reason: unknown) => reason)
    await world.started(bhyve)
    controller.abort(new Error('enough'))
    const error = await outcome
    t.match(error, { code: how === 'abort' ? 'ABORT_ERR' : 'ERR_TIMEOUT', begun: true })
    t.equal(error instanceof AbortError, how === 'abort')
    t.ok(isAlive(world.pidOf(bhyve)), 'not killed')
    t.type(world.manifest('a').restoredAt, 'string', 'still marked')
    fs.writeFileSync(gate, '')
    await world.client.idle()
    t.equal(isAlive(world.pidOf(bhyve)), comesUp)
    t.equal(world.manifest('a').restoredAt !== undefined, comesUp, 'taken back where it did not come up')
    await world.client.pinCheckpoint('vm1', 'a')
  }
  const world = new World(t)
  await world.saved('a')
  const early = { args: world.args, bhyve: world.script(), signal: AbortSignal.abort() }
  const error: unknown = await world.client.restore('vm1', 'a', early).catch((reason: unknown) => reason)
  t.ok(error instanceof AbortError)
  const planned: unknown = await world.client
    .planRestore('vm1', 'a', early)
    .catch((reason: unknown) => reason)
  t.ok(planned instanceof AbortError)
  t.match([error, planned], [{ begun: false }, { begun: false }])
  t.equal(world.manifest('a').restoredAt, undefined)
})

t.test("where bhyve's output goes", async (t) => {
  const world = new World(t)
  await world.saved('a')
  const target = path.join(world.root, 'target')
  fs.writeFileSync(target, 'precious')
  const bhyve = world.script()
  const before = world.manifest('a')
  const restoring = (logFile?: string) =>
    rejection(world.client.restore('vm1', 'a', { args: world.args, bhyve, logFile }))
  const link = path.join(world.root, 'link')
  fs.symlinkSync(target, link)
  t.match(await restoring(link), { code: 'ERR_INVALID_OPTION', path: link, message: /symlink/ })
  const hard = path.join(world.root, 'hard')
  fs.linkSync(target, hard)
  t.match(await restoring(hard), { code: 'ERR_INVALID_OPTION', message: /plain file of its own/ })
  t.match(await restoring(world.root), { code: 'ERR_INVALID_OPTION', message: /directory/ })
  t.match(await restoring('/dev/null'), { code: 'ERR_INVALID_OPTION', message: /other/ })
  t.match(await restoring('/nonexistent/log'), { code: 'ERR_SYSTEM', errno: 2 })
  const standard = path.join(world.directory, 'restore.log')
  fs.symlinkSync(target, standard)
  t.match(await restoring(), { code: 'ERR_INVALID_OPTION', path: standard })
  t.equal(fs.readFileSync(target, 'utf8'), 'precious')
  t.equal(world.pidOf(bhyve), 0)
  t.strictSame(world.manifest('a'), before, 'nothing was marked')
  fs.rmSync(standard)
  const own = path.join(world.root, 'own.log')
  fs.writeFileSync(own, 'first\n', { mode: 0o644 })
  const restored = await world.client.restore('vm1', 'a', { args: world.args, bhyve, logFile: own })
  t.equal(restored.logFile, own)
  t.match(fs.readFileSync(own, 'utf8'), /^first\n.*Restoring/s, 'appended to')
  t.equal(fs.statSync(own).mode & 0o777, 0o600)
  t.notOk(fs.existsSync(standard))
  await world.kill(restored.pid)
  const failed = await rejection(
    world.client.restore('vm1', 'a', {
      args: world.args,
      bhyve: world.script({ instead: 'echo second; exit 1' }),
      logFile: own,
      again: true,
    }),
  )
  t.equal(failed.reply, 'second', 'only what this one said')
})

t.test('a failure at the marking leaves nothing started', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const bhyve = world.script()
  const planning = world.client.planRestore('vm1', 'a', { args: world.args, bhyve })
  t.match(await planning, { command: bhyve })
  t.strictSame((await planning).blockers, [])
  changeManifest(world.directory, 'a', { version: 99 })
  const error = await rejection(world.client.restore('vm1', 'a', { args: world.args, bhyve }))
  t.match(error, { code: 'ERR_RESTORE_BLOCKED', blockers: [{ code: 'damaged', message: /newer release/ }] })
  t.equal(world.pidOf(bhyve), 0)
})

/** A client whose jobs run here: `on` is called before each. */
function watched(world: World, on: (job: string) => unknown): CheckpointClient {
  const pool = () => inlinePool((name) => on(name) as Promise<unknown> | undefined)
  const surroundings = { ...realSurroundings, peers: new PeerMemory(), pool }
  const { runDirectory, checkpointDirectory } = world
  return createClientIn(surroundings, { runDirectory, checkpointDirectory })
}

t.test('a set that is replaced between the look and the start', async (t) => {
  for (const when of ['markRestored', 'holdSet']) {
    const world = new World(t)
    await world.saved('a', 'b')
    const bhyve = world.script()
    const client = watched(world, (job) => {
      if (job !== when) return
      for (const extension of ['', '.kern', '.meta', '.manifest']) {
        const [from, to] = ['b', 'a'].map((name) => path.join(world.directory, `${name}.ckp${extension}`))
        fs.renameSync(from!, to!)
      }
    })
    const error = await rejection(client.restore('vm1', 'a', { args: world.args, bhyve }))
    t.match(error, { code: 'ERR_CHECKPOINT_BUSY', message: /replaced/ }, when)
    t.equal(world.pidOf(bhyve), 0)
    t.equal(world.manifest('a').restoredAt, undefined, 'the new one is not marked')
  }
})

t.test('a cancel between the mark and the start', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const bhyve = world.script()
  const controller = new AbortController()
  const client = watched(world, (job) => {
    if (job === 'holdSet') controller.abort()
  })
  const call = client.restore('vm1', 'a', { args: world.args, bhyve, signal: controller.signal })
  t.ok((await call.catch((reason: unknown) => reason)) instanceof AbortError)
  await client.idle()
  t.equal(world.pidOf(bhyve), 0)
  t.equal(world.manifest('a').restoredAt, undefined)
})

t.test('a mark that cannot be taken back is told of', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const client = watched(world, (job) => {
    return job === 'takeBackMark' ? Promise.reject(new Error('the disk is gone')) : undefined
  })
  const error = await rejection(
    client.restore('vm1', 'a', { args: world.args, bhyve: world.script({ instead: 'exit 1' }) }),
  )
  t.match(error, { code: 'ERR_RESTORE_FAILED', vmState: 'off' })
  t.match(error.message, /status 1.*stays marked as restored \(the disk is gone\).*option 'again'/s)
})

t.test('looks that fail say nothing about a bhyve that runs', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const gate = path.join(world.root, 'gate')
  const bhyve = world.script({ gate })
  let failures = 0
  const client = watched(world, (job) => {
    if (job !== 'locateSocket' || world.pidOf(bhyve) === 0 || failures === 3) return undefined
    if (++failures === 3) fs.writeFileSync(gate, '')
    return Promise.reject(new Error('no descriptor is left'))
  })
  t.equal((await client.restore('vm1', 'a', { args: world.args, bhyve })).pid, world.pidOf(bhyve))
  t.equal(failures, 3)
})

t.test('a bhyve that is no executable file is seen by the plan, and nothing is marked', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const before = contents(world.directory)
  const plain = path.join(world.root, 'plain')
  fs.writeFileSync(plain, '', { mode: 0o644 })
  for (const [bhyve, why] of [
    ['/nonexistent/bhyve', 'does not exist'],
    [plain, 'is not executable'],
    [world.root, 'is not a regular file'],
    [path.join(plain, 'bhyve'), 'does not exist'],
  ] as const) {
    const { blockers } = await world.client.planRestore('vm1', 'a', { args: world.args, bhyve })
    t.strictSame(codesOf({ blockers }), ['arguments-invalid'], why)
    for (const part of [`'${bhyve}' ${why}`, "the option 'bhyve' (--bhyve)"])
      t.ok(blockers[0]?.message.includes(part), part)
    const refused = await rejection(world.client.restore('vm1', 'a', { args: world.args, bhyve }))
    t.match(refused, {
      code: 'ERR_RESTORE_BLOCKED',
      vm: 'vm1',
      checkpoint: 'a',
      blockers: [{ code: 'arguments-invalid' }],
    })
  }
  const both = { args: [...world.args, '-r', '/x'], bhyve: plain }
  t.strictSame(codesOf(await world.client.planRestore('vm1', 'a', both)), [
    'arguments-invalid',
    'arguments-invalid',
  ])
  t.strictSame(contents(world.directory), before, 'not even a log')
})

t.test(
  'where there is no bhyve a plan may leave it out, and a restore may not',
  {
    skip: fs.existsSync('/usr/sbin/bhyve') && 'this host has a bhyve',
  },
  async (t) => {
    const world = new World(t)
    await world.saved('a')
    t.strictSame((await world.client.planRestore('vm1', 'a', { args: world.args })).blockers, [])
    const before = contents(world.directory)
    const refused = await rejection(world.client.restore('vm1', 'a', { args: world.args }))
    t.strictSame(codesOf(refused), ['arguments-invalid'])
    t.strictSame(contents(world.directory), before)
  },
)

t.test('every descriptor comes back', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const owned = native.ownedDescriptors()
  const open = openDescriptors()
  const rounds = async () => {
    const { pid } = await world.client.restore('vm1', 'a', {
      args: world.args,
      bhyve: world.script(),
      again: true,
    })
    await world.kill(pid)
    await rejection(
      world.client.restore('vm1', 'a', { args: world.args, bhyve: '/nonexistent', again: true }),
    )
    await rejection(world.client.restore('vm1', 'a', { args: world.args, bhyve: world.script() }))
  }
  await rounds()
  await rounds()
  t.equal(native.ownedDescriptors(), owned)
  await until(() => openDescriptors() <= open, 'those of the threads')
})

t.test('a bhyve that is told no run directory is looked for where it goes by itself', async (t) => {
  const world = new World(t)
  await world.suspended()
  const defaultRunDirectory = scratch(t)
  const surroundings = { ...realSurroundings, peers: new PeerMemory(), defaultRunDirectory }
  const { runDirectory, checkpointDirectory } = world
  const client = createClientIn(surroundings, { runDirectory, checkpointDirectory })
  const args = world.args.filter((word) => word !== '-o' && !word.startsWith('rundir='))
  const run = `export SIMULATED_BHYVE_RUN_DIRECTORY='${defaultRunDirectory}'; exec '${process.execPath}' '${simulatedBhyve}' "$@"`
  const bhyve = world.script({ instead: run })
  const { pid } = await client.restore('vm1', 'suspend', { args, bhyve })
  t.ok(fs.existsSync(path.join(defaultRunDirectory, 'vm1')))
  t.match(
    (await client.planRestore('vm1', 'suspend', { args, again: true })).blockers,
    [{ code: 'already-running' }],
    'it is known there',
  )
  await world.kill(pid)
  t.type(world.manifest('suspend').restoredAt, 'string')
  t.equal(await client.suspendedCheckpoint('vm1'), undefined)
  const refused = await rejection(client.restore('vm1', 'suspend', { args, bhyve: world.script() }))
  t.match(refused, { code: 'ERR_RESTORE_BLOCKED', blockers: [{ code: 'already-restored' }] })
})

t.test('a guest that came up and ended between two looks has run', async (t) => {
  const world = new World(t)
  await world.suspended()
  const socket = path.join(world.runDirectory, 'vm1')
  const program = `require('node:net').createServer().listen(process.argv[1], () => process.exit(3))`
  const instead = `rm -f '${socket}'; exec '${process.execPath}' -e "${program}" '${socket}'`
  const bhyve = world.script({ instead })
  const client = watched(world, (job) => {
    const isUp = world.pidOf(bhyve) > 0 && isAlive(world.pidOf(bhyve))
    return job === 'locateSocket' && isUp ? Promise.reject(new Error('not while it lives')) : undefined
  })
  const error = await rejection(client.restore('vm1', 'suspend', { args: world.args, bhyve }))
  t.match(error, { code: 'ERR_RESTORE_FAILED', vmState: 'off', message: /status 3.*The guest may have run/s })
  t.type(world.manifest('suspend').restoredAt, 'string', 'the mark stays')
  t.equal(await client.suspendedCheckpoint('vm1'), undefined)
  const refused = await rejection(
    client.restore('vm1', 'suspend', { args: world.args, bhyve: world.script() }),
  )
  t.match(refused, { code: 'ERR_RESTORE_BLOCKED', blockers: [{ code: 'already-restored' }] })
})

t.test('where nobody can look whether the guest has run, the mark stays', async (t) => {
  const world = new World(t)
  await world.suspended()
  const bhyve = world.script({ instead: 'exit 3' })
  const client = watched(world, (job) =>
    job === 'locateSocket' && world.pidOf(bhyve) > 0 ? Promise.reject(new Error('no look')) : undefined,
  )
  const error = await rejection(client.restore('vm1', 'suspend', { args: world.args, bhyve }))
  t.match(error, { code: 'ERR_RESTORE_FAILED', message: /status 3.*The guest may have run/s })
  t.type(world.manifest('suspend').restoredAt, 'string')
})

t.test('a bhyve that is ending serves nobody, though its socket still takes connections', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const bhyve = world.script()
  const processStatus = native.processStatus.bind(native)
  let looks = 0
  intercept(t, 'processStatus', (pid) => {
    const status = processStatus(Number(pid))
    if (pid !== world.pidOf(bhyve) || isFailure(status)) return undefined
    if (++looks === 5) process.kill(Number(pid), 'SIGKILL')
    return { ...status, state: 'zombie' }
  })
  const error = await rejection(world.client.restore('vm1', 'a', { args: world.args, bhyve }))
  t.match(error, { code: 'ERR_RESTORE_FAILED', message: /SIGKILL.*The guest may have run/s })
  t.type(world.manifest('a').restoredAt, 'string')
})

t.test("another restore's record is neither taken back nor started from", async (t) => {
  const directory = path.join(scratch(t), 'vm1')
  putSet(directory, 'a')
  const { identity } = lookAtSet(directory, 'vm1', 'a')
  const mark = (at: string) => markRestored(directory, 'vm1', 'a', identity, { at, again: true })!
  const first = mark('2026-01-01T00:00:00.000Z')
  const second = mark('2026-01-02T00:00:00.000Z')
  const before = manifestOf(directory, 'a')
  t.match(before, { restoredAt: second.at, restores: [{ at: first.at }, { at: second.at }] })
  t.equal(takeBackMark(directory, 'a', first), false)
  t.strictSame(manifestOf(directory, 'a'), before)
  t.equal(holdSet(directory, 'a', identity, first), undefined)
  const held = holdSet(directory, 'a', identity, second)
  native.close(held!.descriptors.staging)
  t.equal(takeBackMark(directory, 'a', second), true)
  t.match(manifestOf(directory, 'a'), { restoredAt: first.at, restores: [{ at: first.at }] })
})

t.test('a set that another tool makes anew beside our manifest is not the one that was judged', async (t) => {
  const directory = path.join(scratch(t), 'vm1')
  putSet(directory, 'a')
  const { identity } = lookAtSet(directory, 'vm1', 'a')
  const restore = { at: '2026-01-01T00:00:00.000Z', again: false }
  const mark = markRestored(directory, 'vm1', 'a', identity, restore)!
  fs.utimesSync(path.join(directory, 'a.ckp'), 1, 1)
  const before = manifestOf(directory, 'a')
  t.equal(holdSet(directory, 'a', identity, mark), undefined)
  t.equal(markRestored(directory, 'vm1', 'a', identity, restore), undefined)
  t.strictSame(manifestOf(directory, 'a'), before)
})
