/** Helpers for the tests of the stand-in for the bhyve executable: its process, and the checkpoint of a VM. */
import { spawn, type ChildProcess } from 'node:child_process'
import fs from 'node:fs'
import { connect, Socket } from 'node:net'
import { dirname, join } from 'node:path'
import { type Test as TestContext } from 'tap'
import { simulatedBhyve, type SimulatedDialect } from 'bhyve-checkpoint/simulator'
import { isFailure, loadNative } from '../../dist/base/native.js'
import { scratch, until } from './index.js'

export const native = loadNative()
export const mebibyte = 1024 * 1024
export const machineArgs = [
  '-AHP',
  '-c',
  '2',
  '-m4M',
  '-s0,hostbridge',
  '-s',
  '3,virtio-blk,d.img',
  '-s',
  '31,lpc',
]

// ---- processes ------------------------------------------------------------------------------------------

interface Settings {
  dialect?: SimulatedDialect
  options?: object
  /** Start it as `node <path>`. Default: execute it directly. */
  byNode?: boolean
  output?: 'pipe' | 'ignore'
}

/** A process of the stand-in. It is killed at the end of the test. */
export class StandIn {
  readonly child: ChildProcess
  readonly ended: Promise<{ code: number | null; signal: string | null }>
  output = ''
  errors = ''
  over = false

  constructor(test: TestContext, run: string, args: readonly string[], settings: Settings = {}) {
    const { dialect = 'descriptor', options = {}, byNode = false, output = 'pipe' } = settings
    const [command, words] = byNode ? [process.execPath, [simulatedBhyve, ...args]] : [simulatedBhyve, args]
    this.child = spawn(command, words, {
      stdio: ['ignore', output, 'pipe'],
      env: {
        ...process.env,
        SIMULATED_BHYVE_RUN_DIRECTORY: run,
        SIMULATED_BHYVE_DIALECT: dialect,
        SIMULATED_BHYVE_OPTIONS: JSON.stringify(options),
      },
    })
    this.child.stdout?.on('data', (text: Buffer) => (this.output += text.toString()))
    this.child.stderr?.on('data', (text: Buffer) => (this.errors += text.toString()))
    this.ended = new Promise((resolve) => {
      this.child.once('close', (code, signal) => {
        this.over = true
        resolve({ code, signal })
      })
    })
    test.teardown(() => this.kill())
  }

  get pid(): number {
    return this.child.pid ?? 0
  }

  async listening(socket: string): Promise<void> {
    await until(async () => {
      if (this.over) throw new Error(`The stand-in has ended: ${this.errors}`)
      return accepts(socket)
    }, `a socket at ${socket}`)
  }

  async kill(): Promise<void> {
    this.child.kill('SIGKILL')
    await this.ended
  }
}

/** Returns true if a connection succeeds. Sends nothing, so do not use this with the dialect `struct`. */
export async function accepts(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path, () => {
      socket.destroy()
      resolve(true)
    }).once('error', () => resolve(false))
  })
}

// ---- checkpoints ----------------------------------------------------------------------------------------

export function socketOf(run: string, vm: string, dialect: SimulatedDialect): string {
  return dialect === 'struct' ? join(run, 'checkpoint', vm) : join(run, vm)
}

export function ok<T>(result: T): Exclude<T, { errno: number }> {
  if (isFailure(result)) throw new Error(`${result.syscall}: errno ${String(result.errno)}`)
  return result as Exclude<T, { errno: number }>
}

/** Sends a request. Resolves with the reply at the end of the connection. */
export async function request(
  socketPath: string,
  dialect: SimulatedDialect,
  path: string,
  suspend = false,
): Promise<Buffer> {
  const directory = fs.openSync(dirname(path), 'r')
  // The socket file exists before the socket listens.
  let connected = native.connectStream(socketPath)
  await until(() => {
    if (isFailure(connected)) connected = native.connectStream(socketPath)
    return !isFailure(connected)
  }, 'a connection')
  const socket = ok(connected)
  const inDirectory = dialect === 'descriptor' || dialect === 'reply'
  const payload = native.encodeRequest(
    dialect === 'reply' ? 'descriptor' : dialect,
    suspend ? 'suspend' : 'checkpoint',
    inDirectory ? path.slice(dirname(path).length + 1) : path,
  )
  ok(native.send(socket, payload, 0))
  if (inDirectory) ok(native.sendDescriptor(socket, directory))
  fs.closeSync(directory)
  native.shutdownWrite(socket)
  const connection = new Socket({ fd: socket, readable: true, writable: false, allowHalfOpen: true })
  native.disown(socket)
  const received: Buffer[] = []
  connection.on('data', (bytes: Buffer) => received.push(bytes)).on('error', () => undefined)
  await new Promise((closed) => connection.once('close', closed))
  return Buffer.concat(received)
}

export interface Metadata {
  'basic metadata': { vmname: string; ncpus: number; memsize: number }
  kern_structs: Section[]
  devices: Section[]
}
interface Section {
  device: string
  size: number
  file_offset: number
}

export function metadataOf(path: string): Metadata {
  return JSON.parse(fs.readFileSync(`${path}.meta`, 'utf8')) as Metadata
}

interface Saved {
  run: string
  path: string
  directory: string
}

/** Saves a checkpoint of a VM `vm0` with `machineArgs`, then kills the stand-in. */
export async function savedVm(
  test: TestContext,
  { dialect = 'descriptor' }: Settings = {},
  args: readonly string[] = machineArgs,
): Promise<Saved> {
  const directory = scratch(test)
  const run = join(directory, 'run')
  const vm = new StandIn(test, run, [...args, 'vm0'], { dialect })
  await vm.listening(socketOf(run, 'vm0', dialect))
  const path = join(directory, 'saved')
  await request(socketOf(run, 'vm0', dialect), dialect, path)
  await vm.kill()
  return { run, path, directory }
}
