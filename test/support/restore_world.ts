/** Helpers for the tests of a restore: a VM, its checkpoints, and a stand-in for bhyve that restores it. */
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { type Test } from 'tap'
import { type CheckpointClient, type ClientOptions, type Dialect } from 'bhyve-checkpoint'
import { simulatedBhyve, type SimulatedDialect } from 'bhyve-checkpoint/simulator'
import { PeerMemory } from '../../dist/bhyve/peer_memory.js'
import { createClientIn } from '../../dist/client/client.js'
import { isFailure } from '../../dist/base/native.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import { inlinePool, scratch, until } from './index.js'
import { manifestOf } from './sets.js'

export const native = loadSimulatorNative()

export function isAlive(pid: number): boolean {
  const status = native.processStatus(pid)
  return !isFailure(status) && status.state !== 'zombie'
}

/**
 * Returns true if a socket listens at this path. Does not connect, because a `struct` bhyve would repeat its last
 * request. Does not rely on the socket file, because it exists before the socket listens.
 */
function isListenedAt(socket: string): boolean {
  const sockets = '/proc/net/unix'
  if (!fs.existsSync(sockets)) return fs.existsSync(socket)
  const acceptsConnections = '00010000'
  const lines = fs.readFileSync(sockets, 'utf8').split('\n')
  return lines.some((line) => line.endsWith(` ${socket}`) && line.split(' ')[3] === acceptsConnections)
}

interface ScriptOptions {
  dialect?: SimulatedDialect
  /** Start only when this file exists. */
  gate?: string
  /** A shell command to run instead of the stand-in. */
  instead?: string
  /** The settings for which the stand-in has no arguments. */
  options?: object
}

/** The directories of a test, the VM's arguments, and scripts that exec the stand-in, which keeps the script's pid. */
export class World {
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

  newClient(options: ClientOptions = {}): CheckpointClient {
    const dialect: Dialect = this.dialect === 'reply' ? 'descriptor' : this.dialect
    const { runDirectory, checkpointDirectory } = this
    const environment = { ...hostEnvironment, peers: new PeerMemory() }
    return createClientIn(environment, { runDirectory, checkpointDirectory, dialect, ...options })
  }

  /** Creates an executable for the option `bhyve`. First of all, it writes its pid to `<file>.pid`. */
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

  /** Starts a new VM. Resolves with its pid. */
  async begun(): Promise<number> {
    const script = this.script()
    spawn(script, this.args, { stdio: 'ignore' })
    const pid = await this.started(script)
    const isStruct = this.dialect === 'struct'
    const socket = path.join(this.runDirectory, isStruct ? 'checkpoint/vm1' : 'vm1')
    await until(() => (isStruct ? isListenedAt(socket) : this.isServedBy(pid)), 'the socket')
    return pid
  }

  /** The process of a killed VM may hold the socket for a moment after its end. */
  isServedBy(pid: number): boolean {
    const connection = native.connectStream(path.join(this.runDirectory, 'vm1'))
    if (isFailure(connection)) return false
    const peer = native.peerOf(connection)
    native.close(connection)
    return !isFailure(peer) && peer.pid === pid
  }

  /** Returns true if the VM accepts connections. */
  isServed(): boolean {
    const connection = native.connectStream(path.join(this.runDirectory, 'vm1'))
    if (!isFailure(connection)) native.close(connection)
    return !isFailure(connection)
  }

  /** Starts a new VM and suspends it. */
  async suspended(name = 'suspend'): Promise<void> {
    await this.begun()
    await this.client.suspend('vm1', { name })
  }

  /** Starts a new VM, creates checkpoints of it, and kills it. Its socket file remains. */
  async saved(...names: string[]): Promise<void> {
    const pid = await this.begun()
    for (const name of names) await this.client.createCheckpoint('vm1', { name })
    await this.kill(pid)
  }

  /** The digests of the three files that bhyve wrote. */
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

export const codesOf = (error: { blockers?: readonly { code: string }[] }) =>
  error.blockers?.map(({ code }) => code)

/** A client whose jobs run in this thread. `on` is called before each job. */
export function watched(world: World, on: (job: string) => unknown): CheckpointClient {
  const pool = () => inlinePool((name) => on(name) as Promise<unknown> | undefined)
  const environment = { ...hostEnvironment, peers: new PeerMemory(), pool }
  const { runDirectory, checkpointDirectory } = world
  return createClientIn(environment, { runDirectory, checkpointDirectory })
}
