/** Helpers for the tests of a suspend: a VM and its client, and pools with hooks before and after each job. */
import { type ChildProcess, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { type Test } from 'tap'
import { type CheckpointClient, createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve, type SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { createClientIn } from '../../dist/client/client.js'
import { isFailure, loadNative } from '../../dist/base/native.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import type { JobRunner } from '../../dist/pool/pool.js'
import { childEnvironment, inlinePool, scratch, until } from './index.js'

const MiB = 1024 * 1024
const native = loadNative()

export interface World {
  bhyve: SimulatedBhyve
  client: CheckpointClient
  root: string
  /** The checkpoint directory of the VM. */
  directory: string
}

export async function start(t: Test, options: Partial<SimulatorOptions> = {}): Promise<World> {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: MiB, ...options })
  t.teardown(() => bhyve.stop())
  const root = scratch(t)
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: root })
  return { bhyve, client, root, directory: path.join(root, 'vm1') }
}

export function digest(file: string): string {
  return createHash('sha256').update(fs.readFileSync(file)).digest('hex')
}

/** Returns true if the process has ended, even if its parent has not waited for it yet. */
export function isGone(pid: number): boolean {
  const status = native.processStatus(pid)
  return isFailure(status) || status.state === 'zombie'
}

/** A pool that calls `before` and `after` around each job. `before` can delay the job. */
export function watchedPool(
  before: (name: string) => unknown,
  after: (name: string) => unknown = () => undefined,
): () => JobRunner {
  const real = hostEnvironment.pool()
  const run: JobRunner['run'] = async (job, onStart) => {
    await before(job.name)
    const result = await real.run(job, onStart)
    after(job.name)
    return result
  }
  return () => ({ run, emptied: () => real.emptied(), takeNoted: (one) => real.takeNoted(one) })
}

/** A client whose jobs run in this thread. Calls `spoil` with the inbox before the checkpoint files are inspected. */
export function spoiling(
  { bhyve, root, directory }: World,
  spoil: (inbox: string) => void,
): CheckpointClient {
  const pool = inlinePool((job) => {
    if (job !== 'collectStage') return undefined
    const staging = path.join(directory, '.staging')
    spoil(path.join(staging, fs.readdirSync(staging)[0]!, 'in'))
    return undefined
  })
  const options = { runDirectory: bhyve.runDirectory, checkpointDirectory: root }
  return createClientIn({ ...hostEnvironment, pool: () => pool }, options)
}

export interface ManagerTarget {
  bhyve: Pick<SimulatedBhyve, 'runDirectory'>
  root: string
}

/** A client in another process, which can be killed. */
export class Manager {
  readonly child: ChildProcess
  #output = ''

  constructor(t: Test, { bhyve, root }: ManagerTarget, hold: string, options: object = {}) {
    const script = fileURLToPath(new URL('suspend.mjs', import.meta.url))
    const args = [script, bhyve.runDirectory, root, hold, JSON.stringify(options)]
    this.child = spawn(process.execPath, args, {
      env: childEnvironment(),
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    this.child.stdout!.on('data', (chunk) => (this.#output += String(chunk)))
    t.teardown(() => this.child.kill('SIGKILL'))
  }

  get lines(): string[] {
    return this.#output.split('\n').filter((line) => line !== '')
  }

  async reached(phase: string): Promise<void> {
    await until(() => this.lines.includes(phase), `the manager at ${phase}: ${this.#output}`)
  }

  async kill(): Promise<void> {
    this.child.kill('SIGKILL')
    await once(this.child, 'exit')
  }

  async ended(): Promise<string> {
    if (this.child.exitCode === null) await once(this.child, 'exit')
    return this.lines.at(-1) ?? ''
  }
}
