/**
 * A stand-in for vm-bhyve. Like vm-bhyve, it starts bhyve again after status 0 unless `suspending.lock` exists, removes
 * its files when it stops, writes the name of the host into them, and prints its datastores.
 */
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { type Test } from 'tap'
import type { CheckpointClient, ClientOptions } from 'bhyve-checkpoint'
import { simulatedBhyve } from 'bhyve-checkpoint/simulator'
import { PeerMemory } from '../../dist/bhyve/peer_memory.js'
import { createClientIn } from '../../dist/client/client.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { isFailure } from '../../dist/base/native.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import { childEnvironment, scratch, until } from './index.js'

const native = loadSimulatorNative()

const script = `
if [ "$1" = datastore ]; then
  echo 'NAME            TYPE        PATH                      ZFS DATASET'
  printf '%-15s %-11s %-25s %s\\n' default directory "$ROOT/empty" - second directory "$ROOT/vms" -
  exit 0
fi
vm=$2
hostname > "$ROOT/vms/$vm/run.lock"
while true; do
  echo start >> "$ROOT/starts"
  node=$NODE bhyve=$BHYVE
  "$node" "$bhyve" -c1 -m1M -s0,hostbridge -s31,lpc -o "rundir=$ROOT/run" "$vm"
  status=$?
  [ -f "$ROOT/vms/$vm/suspending.lock" ] && break
  [ $status -eq 0 ] || break
done
rm -f "$ROOT/vms/$vm/run.lock" "$ROOT/vms/$vm/suspending.lock"
echo stop >> "$ROOT/starts"
`

export class VmBhyve {
  readonly root: string
  readonly directory: string
  readonly program: string
  readonly #t: Test

  constructor(t: Test) {
    this.#t = t
    this.root = scratch(t)
    this.directory = path.join(this.root, 'vms', 'vm1')
    for (const name of ['empty', 'run', 'vms/vm1'])
      fs.mkdirSync(path.join(this.root, name), { recursive: true })
    fs.writeFileSync(path.join(this.directory, 'vm1.conf'), 'cpu=1\n')
    this.program = path.join(this.root, 'vm')
    const settings = { ROOT: this.root, NODE: process.execPath, BHYVE: simulatedBhyve }
    const assignments = Object.entries(settings).map(([name, value]) => `${name}='${value}'`)
    fs.writeFileSync(this.program, ['#!/bin/sh', ...assignments, script].join('\n'), { mode: 0o755 })
  }

  /** Starts the VM in a process group of its own. `options`: those of the simulator without arguments. */
  async start(options: object = {}): Promise<void> {
    const settings = JSON.stringify({ suspendExitCode: 0, ...options })
    const env = childEnvironment({ SIMULATED_BHYVE_OPTIONS: settings })
    const child = spawn(this.program, ['_run', 'vm1'], { env, detached: true, stdio: 'ignore' })
    this.#t.teardown(() => {
      if (child.exitCode === null) process.kill(-child.pid!, 'SIGKILL')
    })
    await this.served()
  }

  async served(): Promise<void> {
    await until(() => {
      const connection = native.connectStream(path.join(this.root, 'run', 'vm1'))
      if (isFailure(connection)) return false
      native.close(connection)
      return true
    }, 'the VM')
  }

  /** What has happened, in order: `start` for each start of bhyve, then `stop`. */
  get events(): string[] {
    const file = path.join(this.root, 'starts')
    return fs.existsSync(file) ? fs.readFileSync(file, 'utf8').trim().split('\n') : []
  }

  get files(): string[] {
    return fs.readdirSync(this.directory).sort()
  }

  put(name: string, text = `${os.hostname()}\n`): void {
    fs.writeFileSync(path.join(this.directory, name), text)
  }

  client(supervisor?: ClientOptions['supervisor'], vmBhyveProgram = this.program): CheckpointClient {
    const options = {
      runDirectory: path.join(this.root, 'run'),
      checkpointDirectory: path.join(this.root, 'checkpoints'),
      dialect: 'descriptor',
      supervisor,
    } as const
    return createClientIn({ ...hostEnvironment, vmBhyveProgram, peers: new PeerMemory() }, options)
  }
}
