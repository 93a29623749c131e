// Runs one operation: `operator.mjs <operation> <root> setup|traced`. A manager that is going to be killed runs as
// `operator.mjs <call> <root> victim <name>`. openat() calls of `/power-mark/...` put marks into the trace. They always
// fail.
import { Buffer } from 'node:buffer'
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { createClient, fileDisks } from '../../dist/index.js'
import { SimulatedBhyve, simulatedBhyve } from '../../dist/simulator/index.js'
import { operations, recover } from './operations.mjs'

export const vm = 'vm1'
const self = fileURLToPath(import.meta.url)
/** So slow that the guard, which is traced as well, stops bhyve before it has written all of RAM. */
const writeRate = 2 * 1024 * 1024
/** Tracing and a loaded machine make the capture slow. */
const freezeTimeout = 60_000
const strikeModule = new URL('strike.mjs', import.meta.url).href

/** The arguments of the simulated VM, without `-r`. */
export function restoreArguments(runDirectory) {
  return ['-c1', '-m4M', '-s0,hostbridge', '-s31,lpc', '-o', `rundir=${runDirectory}`, vm]
}

/** Differs for each generation, and ends with a hole, so that a snapshot of it is written and then resized. */
function diskContent(generation) {
  const content = Buffer.alloc(8192)
  content.fill(`disk of generation ${generation} `, 0, 4096)
  return content
}

function mark(fact) {
  try {
    fs.openSync(`/power-mark/${JSON.stringify(fact)}`)
  } catch {
    return // the path never exists
  }
}

export class Operator {
  #root
  #guests
  #client
  #run
  #disk

  constructor(root) {
    this.#root = root
    this.#run = path.join(root, 'run')
    this.#guests = path.join(root, 'guests')
    this.#disk = path.join(root, 'disk.img')
    this.#client = createClient({
      runDirectory: this.#run,
      checkpointDirectory: path.join(root, 'store'),
      dialect: 'descriptor',
    })
  }

  create(name) {
    return this.#saving('create', name)
  }

  suspend(name) {
    return this.#saving('suspend', name)
  }

  createWithDisk(name) {
    return this.#saving('create', name, true)
  }

  suspendWithDisk(name) {
    return this.#saving('suspend', name, true)
  }

  /** Each guest differs from all others in RAM, kernel state and metadata, and its disk in content. */
  async #saving(call, name, hasDisk = false) {
    const generation = fs.readdirSync(this.#guests).length + 1
    fs.writeFileSync(path.join(this.#guests, String(generation)), '')
    // Half of it is one run of zeros, long enough to become a hole.
    const memoryBytes = 163840 + 16384 * generation
    const guest = { vm, runDirectory: this.#run, memoryBytes, cpus: generation, suspendExitDelayMs: 0 }
    const bhyve = await SimulatedBhyve.start(hasDisk ? { ...guest, writeRate } : guest)
    const disk = hasDisk ? this.#writeDisk(generation) : undefined
    mark({ event: 'bhyve', pid: bhyve.pid, generation, disk })
    const options = { name, onProgress, ...(hasDisk ? this.#diskOptions(call) : {}) }
    await this.#marked({ call, name, generation }, () =>
      call === 'create' ? this.#client.createCheckpoint(vm, options) : this.#client.suspend(vm, options),
    )
    await bhyve.stop()
    fs.rmSync(path.join(this.#run, vm), { force: true })
  }

  /** The disk is not in the store, so its own losses are not part of a state. Returns its digest. */
  #writeDisk(generation) {
    const content = diskContent(generation)
    fs.writeFileSync(this.#disk, content.subarray(0, 4096))
    fs.truncateSync(this.#disk, content.length)
    return createHash('sha256').update(content).digest('hex')
  }

  #diskOptions(call) {
    const disks = [fileDisks({ files: [this.#disk], allowCopy: true })]
    return call === 'create' ? { disks, freezeTimeout } : { disks }
  }

  async #marked(fact, work) {
    mark({ event: 'begin', ...fact })
    await work()
    mark({ event: 'resolved', ...fact })
  }

  destroy(name) {
    return this.#marked({ call: 'destroy', names: [name] }, () => this.#client.destroyCheckpoint(vm, name))
  }

  destroyAll() {
    return this.#marked({ call: 'destroyAll' }, () => this.#client.destroyAll(vm))
  }

  prune(policy, names) {
    return this.#marked({ call: 'prune', names }, () => this.#client.pruneCheckpoints(vm, policy))
  }

  pin(name, pinned) {
    return this.#marked({ call: 'pin', name, pinned }, () => this.#client.pinCheckpoint(vm, name, pinned))
  }

  async restore(name) {
    const args = restoreArguments(this.#run)
    const options = { args, bhyve: simulatedBhyve, disks: 'keep' }
    await this.#marked({ call: 'restore', name }, async () => {
      const { pid, exited } = await this.#client.restore(vm, name, options)
      mark({ event: 'restored', pid })
      process.kill(pid, 'SIGKILL')
      await exited
    })
    fs.rmSync(path.join(this.#run, vm), { force: true })
  }

  /** Marks what the call returned: it must still hold after a later power failure. */
  async list() {
    const listed = await this.#client.listCheckpoints(vm)
    for (const { name, state, path: file, disks } of listed) {
      const digest = createHash('sha256').update(fs.readFileSync(file)).digest('hex')
      mark({ event: 'shown', name, state, digest, listsDisks: disks !== undefined })
    }
    mark({ event: 'listed', names: listed.map(({ name }) => name) })
  }

  /** Runs `call` in a process of its own, which is killed at the point that `strike` defines. */
  async killed(call, name, strike) {
    const environment = {
      ...process.env,
      POWER_STRIKE: JSON.stringify({ ...strike, flag: path.join(this.#root, 'flag') }),
    }
    const args = ['--import', strikeModule, self, call, this.#root, 'victim', name]
    const child = spawn(process.execPath, args, { env: environment, stdio: 'inherit' })
    const signal = await new Promise((resolve) => child.once('exit', (_, by) => resolve(by)))
    if (signal !== 'SIGKILL') throw new Error(`'${call}' was not killed at ${JSON.stringify(strike)}`)
    mark({ event: 'killed', call, name })
    await this.#endGuests()
  }

  /** Ends the bhyves that the killed process started. */
  async #endGuests() {
    for (const entry of fs.readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
      if (!commandLine(entry).includes(this.#run)) continue
      process.kill(Number(entry), 'SIGKILL')
    }
    fs.rmSync(path.join(this.#run, vm), { force: true })
  }

  putForeignFile() {
    fs.writeFileSync(path.join(this.#root, 'store', vm, 'notes.txt'), 'of somebody else')
  }
}

function commandLine(pid) {
  try {
    return fs.readFileSync(`/proc/${pid}/cmdline`, 'latin1')
  } catch {
    return ''
  }
}

function onProgress({ phase }) {
  const { phase: wanted } = JSON.parse(process.env.POWER_STRIKE ?? '{}')
  if (phase === wanted) process.kill(process.pid, 'SIGKILL')
}

if (process.argv[1] === self) {
  const [what, root, part, name] = process.argv.slice(2)
  const operator = new Operator(root)
  if (part === 'victim') await operator[what](name)
  else await { ...operations, recover }[what][part]?.(operator)
}
