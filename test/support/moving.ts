/** Helpers for the tests of a move: two hosts, the state of a suspended VM, and a connection with faults. */
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { Duplex, duplexPair } from 'node:stream'
import { type Test } from 'tap'
import {
  type CheckpointClient,
  type Dialect,
  type MoveOptions,
  type MoveReport,
  type ReceiveOptions,
} from 'bhyve-checkpoint'
import { simulatedBhyve } from 'bhyve-checkpoint/simulator'
import { PeerMemory } from '../../dist/bhyve/peer_memory.js'
import { createClientIn } from '../../dist/client/client.js'
import { type Environment, hostEnvironment } from '../../dist/client/environment.js'
import { frameOf, FrameReader, preamble } from '../../dist/operations/move/frames.js'
import { childEnvironment, scratch, until } from './index.js'
import { isAlive, native } from './restore_world.js'
import { isFailure } from '../../dist/base/native.js'
import { manifestOf } from './sets.js'

/** One of the two hosts: its directories, its client, and its bhyve. */
export class MovingHost {
  readonly name: string
  readonly root: string
  readonly runDirectory: string
  readonly checkpointDirectory: string
  readonly directory: string
  readonly bhyve: string
  readonly client: CheckpointClient
  readonly #environment: Partial<Environment>

  constructor(t: Test, name: string, root: string, environment: Partial<Environment> = {}) {
    this.name = name
    this.root = path.join(root, name)
    this.runDirectory = path.join(this.root, 'run')
    this.checkpointDirectory = path.join(this.root, 'c')
    this.directory = path.join(this.checkpointDirectory, 'vm1')
    this.bhyve = path.join(this.root, 'bhyve')
    fs.mkdirSync(this.runDirectory, { recursive: true })
    this.writeBhyve()
    this.#environment = environment
    this.client = this.clientOf('descriptor')
    t.teardown(() => this.killAll())
  }

  clientOf(dialect: Dialect): CheckpointClient {
    const injected = { ...hostEnvironment, peers: new PeerMemory(), ...this.#environment }
    const { runDirectory, checkpointDirectory } = this
    return createClientIn(injected, { runDirectory, checkpointDirectory, dialect })
  }

  /** `instead`: a shell command to run instead of the simulator. Each start appends its pid to `starts`. */
  writeBhyve(instead?: string): void {
    const environment = `export NODE_OPTIONS= SIMULATED_BHYVE_DIALECT=descriptor SIMULATED_BHYVE_RUN_DIRECTORY='${this.runDirectory}'`
    const run = instead ?? `exec '${process.execPath}' '${simulatedBhyve}' "$@"`
    const text = `#!/bin/sh\necho $$ >>'${this.root}/starts'\n${environment}\n${run}\n`
    fs.writeFileSync(this.bhyve, text, { mode: 0o755 })
    fs.chmodSync(this.bhyve, 0o755)
  }

  /** The pids of all bhyve processes that were ever started here. */
  get starts(): number[] {
    const file = path.join(this.root, 'starts')
    return fs.existsSync(file) ? fs.readFileSync(file, 'utf8').trim().split('\n').map(Number) : []
  }

  get running(): number[] {
    return this.starts.filter((pid) => isAlive(pid))
  }

  async killAll(): Promise<void> {
    for (const pid of this.running) {
      process.kill(pid, 'SIGKILL')
      await until(() => !isAlive(pid), 'its end')
    }
  }

  /** Starts a new VM. */
  async begin(args: readonly string[]): Promise<void> {
    spawn(this.bhyve, args, { stdio: 'ignore', env: childEnvironment() })
    await until(() => this.isServing(), 'the socket')
  }

  isServing(): boolean {
    const connection = native.connectStream(path.join(this.runDirectory, 'vm1'))
    if (!isFailure(connection)) native.close(connection)
    return !isFailure(connection)
  }

  /** Replaces the checkpoints with those of another directory. */
  take(template: string): void {
    fs.rmSync(this.directory, { recursive: true, force: true })
    fs.cpSync(template, this.directory, { recursive: true, preserveTimestamps: true })
  }

  manifest(name: string): Record<string, unknown> {
    return manifestOf(this.directory, name)
  }

  moveOf(name = 'suspend'): string | undefined {
    const file = path.join(this.directory, `${name}.ckp.manifest`)
    if (!fs.existsSync(file)) return undefined
    return (this.manifest(name).move as { state: string } | undefined)?.state
  }
}

export class Move {
  readonly t: Test
  readonly a: MovingHost
  readonly b: MovingHost
  readonly args: string[]
  readonly disk: string
  readonly root: string

  constructor(
    t: Test,
    { root = scratch(t), a, b }: { root?: string; a?: Partial<Environment>; b?: Partial<Environment> } = {},
  ) {
    this.t = t
    this.root = root
    this.disk = path.join(root, 'disk')
    fs.writeFileSync(this.disk, 'disk')
    fs.utimesSync(this.disk, 1, 1)
    this.args = ['-c2', '-m4M', '-s0,hostbridge', '-s', `3,virtio-blk,${this.disk}`, '-s31,lpc', 'vm1']
    this.a = new MovingHost(t, 'a', root, a)
    this.b = new MovingHost(t, 'b', root, b)
  }

  /** Suspends a new VM on the first host, with its arguments. Resolves with a copy of its directory. */
  async suspended(): Promise<string> {
    await this.a.begin(this.args)
    await this.a.client.suspend('vm1', { recordArguments: this.args })
    const template = path.join(this.root, 'template')
    fs.cpSync(this.a.directory, template, { recursive: true, preserveTimestamps: true })
    return template
  }

  /** Returns a function that puts both hosts back into the state that they have now. */
  snapshot(): () => void {
    const hosts = [this.a, this.b] as const
    const templates = hosts.map((host) => {
      const template = fs.mkdtempSync(path.join(this.root, 'template-'))
      if (fs.existsSync(host.directory))
        fs.cpSync(host.directory, template, { recursive: true, preserveTimestamps: true })
      return template
    })
    return () => hosts.forEach((host, index) => host.take(templates[index] ?? ''))
  }

  /** Moves the VM from `a` to `b`. The receiver's outcome is `received`, also if the move rejects. */
  async run(
    options: Partial<MoveOptions> = {},
    { fault, receiving = {}, from = this.a, to = this.b }: RunOptions = {},
  ): Promise<{ report: MoveReport | Error; received: unknown; wire: Wire }> {
    const wire = new Wire(fault)
    const isSilent = fault !== undefined && !fault.what.startsWith('cut')
    const silenceTimeout = isSilent ? 400 : 10_000
    const receive = { bhyve: to.bhyve, silenceTimeout, ...receiving }
    const received = to.client.receiveVirtualMachine(wire.receiver, receive).catch((error: unknown) => error)
    const call = { host: to.name, connect: () => wire.sender, silenceTimeout, bhyve: from.bhyve, ...options }
    const report = await from.client.moveVirtualMachine('vm1', call).catch((error: unknown) => error as Error)
    await from.client.idle()
    return { report, received: await received, wire }
  }

  /** The hosts on which a restore is possible now. */
  async restorable(): Promise<string[]> {
    const found: string[] = []
    for (const host of [this.a, this.b]) {
      for (const { name } of await host.client.listCheckpoints('vm1')) {
        const { blockers } = await host.client.planRestore('vm1', name, {
          args: this.args,
          bhyve: host.bhyve,
        })
        if (blockers.length === 0) found.push(host.name)
      }
    }
    return found
  }

  get running(): string[] {
    return [this.a, this.b].flatMap((host) => host.running.map(() => host.name))
  }
}

interface RunOptions {
  fault?: Fault
  receiving?: ReceiveOptions
  from?: MovingHost
  to?: MovingHost
}

/** What happens to one message: it is lost, arrives twice or late, or the connection is cut before it. */
export interface Fault {
  from: 'sender' | 'receiver'
  /** Counts messages, and the first data as one. */
  index: number
  what: 'lost' | 'doubled' | 'delayed' | 'cut' | 'cut after'
}

/** A connection that counts messages, and does something to one of them. */
export class Wire {
  readonly sender: Duplex
  readonly receiver: Duplex
  /** The types of the messages that were sent, with their sender. */
  readonly messages: { from: 'sender' | 'receiver'; type: string }[] = []
  readonly #fault: Fault | undefined

  constructor(fault?: Fault) {
    this.#fault = fault
    const [sender, nearSender] = duplexPair()
    const [receiver, nearReceiver] = duplexPair()
    this.sender = sender
    this.receiver = receiver
    const both = [nearSender, nearReceiver]
    for (const end of both) end.on('error', () => undefined)
    this.#relay('sender', nearSender, nearReceiver, both)
    this.#relay('receiver', nearReceiver, nearSender, both)
  }

  #relay(from: 'sender' | 'receiver', source: Duplex, target: Duplex, both: readonly Duplex[]): void {
    const reader = new FrameReader()
    let index = -1
    let hasData = false
    target.write(preamble)
    source.on('data', (bytes: Buffer) => {
      reader.add(bytes)
      for (let frame = reader.next(); frame !== undefined; frame = reader.next()) {
        const { kind } = frame
        const bytesOf = frameOf(kind, frame.payload)
        const isCounted = kind === 'message' || (kind === 'data' && !hasData)
        if (isCounted) {
          index++
          const type =
            kind === 'data' ? 'data' : (JSON.parse(frame.payload.toString()) as { type: string }).type
          this.messages.push({ from, type })
        }
        hasData ||= kind === 'data'
        const isStruck = isCounted && this.#fault?.from === from && this.#fault.index === index
        if (!isStruck) this.#write(target, bytesOf)
        else this.#strike(target, bytesOf, both)
      }
    })
    source.on('end', () => target.end())
    source.on('close', () => target.end())
  }

  #strike(target: Duplex, bytes: Buffer, both: readonly Duplex[]): void {
    const what = this.#fault?.what
    if (what === 'doubled') this.#write(target, Buffer.concat([bytes, bytes]))
    if (what === 'delayed') setTimeout(() => this.#write(target, bytes), 250)
    if (what === 'cut after') {
      this.#write(target, bytes)
      setImmediate(() => setImmediate(() => this.#cut(both)))
    }
    if (what === 'cut') this.#cut(both)
  }

  #cut(both: readonly Duplex[]): void {
    for (const end of [...both, this.sender, this.receiver]) end.destroy()
  }

  #write(target: Duplex, bytes: Buffer): void {
    if (target.writable) target.write(bytes)
  }
}
