/** Two hosts of a move that have their own ZFS: the receiver is a process with another `zfs` in its PATH. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { Duplex, Transform } from 'node:stream'
import type { Test } from 'tap'
import type { MoveOptions, MoveReport } from 'bhyve-checkpoint'
import { childEnvironment } from './index.js'
import type { Move } from './moving.js'

const side = path.join(import.meta.dirname, 'move_side.mjs')
const script = path.join(import.meta.dirname, 'zfs-stand-in.mjs')

export interface Received {
  report: MoveReport | Error
  /** What the receiver printed as its error. */
  errors: string
}

/** Changes text in both directions of a connection. It must keep its length. */
type Change = (text: string) => string

/** Moves the VM to a receiver with this PATH. `cut` ends the connection. */
export async function moveWithDisks(
  { a, b }: Move,
  receiverPath: string,
  options: (cut: () => void) => Partial<MoveOptions>,
  change: Change = (text) => text,
): Promise<Received> {
  const words = [side, 'receive', b.runDirectory, b.checkpointDirectory, b.bhyve, a.name]
  const child = spawn(process.execPath, words, {
    env: childEnvironment({ PATH: receiverPath }),
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  let errors = ''
  child.stderr.on('data', (bytes: Buffer) => (errors += String(bytes)))
  const ended = once(child, 'close')
  const [up, down] = [changing(change), changing(change)]
  up.pipe(child.stdin)
  child.stdin.on('error', () => undefined)
  const connection = Duplex.from({ readable: child.stdout.pipe(down), writable: up })
  connection.on('error', () => undefined)
  const cut = (): void => {
    connection.destroy()
    child.stdin.destroy()
  }
  const call = { host: b.name, connect: () => connection, silenceTimeout: 20_000, bhyve: a.bhyve }
  const report = await a.client
    .moveVirtualMachine('vm1', { ...call, disks: 'send', ...options(cut) })
    .catch((error: unknown) => error as Error)
  await a.client.idle()
  connection.destroy()
  child.stdin.end()
  await ended
  return { report, errors }
}

function changing(change: Change): Transform {
  const transform = (bytes: Buffer, _encoding: unknown, done: (error: null, bytes: Buffer) => void): void =>
    done(null, Buffer.from(change(bytes.toString('latin1')), 'latin1'))
  return new Transform({ transform })
}

interface State {
  datasets: Record<string, Record<string, string>>
  /** What goes wrong, and with which dataset. */
  failing?: 'send' | 'receive' | 'kill' | 'properties' | 'other' | undefined
  failingName?: string
}

/** The stand-in for `zfs` of one host, which has the file system `tank`. */
export class StandInHost {
  readonly path: string
  readonly #file: string

  constructor(root: string, name: string) {
    const bin = path.join(root, `${name}-bin`)
    fs.mkdirSync(bin)
    this.#file = path.join(bin, 'state')
    this.path = `${bin}:${process.env.PATH ?? ''}`
    for (const program of ['zfs', 'zpool']) {
      const line = `exec '${process.execPath}' '${script}' '${this.#file}' ${program} "$@"`
      fs.writeFileSync(path.join(bin, program), `#!/bin/sh\n${line}\n`, { mode: 0o755 })
    }
    const tank = { '#type': 'filesystem', '#mountpoint': '/tank', '#available': '1000000' }
    const state = { pools: { tank: 'ONLINE' }, readonly: 'off', guid: 1000, calls: [], datasets: { tank } }
    fs.writeFileSync(this.#file, JSON.stringify(state))
  }

  /** Makes its commands those of this process until the end of the test. */
  use(t: Test): void {
    const { PATH } = process.env
    process.env.PATH = this.path
    t.teardown(() => void (process.env.PATH = PATH))
  }

  get state(): State {
    return JSON.parse(fs.readFileSync(this.#file, 'utf8')) as State
  }

  change(by: Partial<State>): void {
    fs.writeFileSync(this.#file, JSON.stringify({ ...this.state, ...by }))
  }

  /** `undefined` removes it. */
  set(dataset: string, properties: Record<string, string> | undefined): void {
    const { [dataset]: before, ...datasets } = this.state.datasets
    this.change({
      datasets:
        properties === undefined ? datasets : { ...datasets, [dataset]: { ...before, ...properties } },
    })
  }

  /** A volume with these data. */
  volume(dataset: string, data: string): void {
    const bytes = String(data.length)
    this.set(dataset, {
      '#type': 'volume',
      '#guid': '7',
      '#referenced': bytes,
      '#used': bytes,
      '#data': data,
    })
  }

  /** What is there besides the pool. */
  get names(): string[] {
    return Object.keys(this.state.datasets)
      .filter((name) => name !== 'tank')
      .sort()
  }
}

/** Volumes of the VM on the first host, and the arguments that use them. */
export function volumesOf(a: StandInHost, names: readonly string[]): string[] {
  for (const name of names) a.volume(`tank/${name}`, `disk ${name}`)
  const disks = names.flatMap((name, index) => [
    '-s',
    `${String(index + 3)},virtio-blk,/dev/zvol/tank/${name}`,
  ])
  return ['-c2', '-m4M', '-s0,hostbridge', ...disks, '-s31,lpc', 'vm1']
}
