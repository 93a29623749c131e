// Runs one operation: `operator.mjs <operation> <root> setup|traced`. A manager that is going to be killed runs as
// `operator.mjs <call> <root> victim <name>`. openat() calls of `/power-mark/...` put marks into the trace. They always
// fail.
import { Buffer } from 'node:buffer'
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { createClient, fileDisks } from '../../dist/index.js'
import { usualSliceBytes } from '../../dist/checkpoint/slice.js'
import { SimulatedBhyve, simulatedBhyve } from '../../dist/simulator/index.js'
import { operations, recover } from './operations.mjs'
import { digestOf } from './sparse.mjs'

export const vm = 'vm1'
const self = fileURLToPath(import.meta.url)
/** So slow that the guard, which is traced as well, stops bhyve before it has written all of RAM. */
const writeRate = 2 * 1024 * 1024
/** More than one slice: only then is memory given back while RAM is copied. Nearly all of it is zeros, for speed. */
const manySlices = { bytes: usualSliceBytes, zeroFraction: 0.99 }
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
  #memoryClient
  #run
  #disk

  constructor(root) {
    this.#root = root
    this.#run = path.join(root, 'run')
    this.#guests = path.join(root, 'guests')
    this.#disk = path.join(root, 'disk.img')
    const store = path.join(root, 'store')
    const options = { runDirectory: this.#run, checkpointDirectory: store, dialect: 'descriptor' }
    this.#client = createClient(options)
    const { POWER_MEMORY: directory } = process.env
    this.#memoryClient = directory && createClient({ ...options, memoryStage: { directory } })
  }

  create(name) {
    return this.#saving('create', name)
  }

  createInMemory(name) {
    return this.#saving('createInMemory', name)
  }

  createManySlicesInMemory(name) {
    return this.#saving('createInMemory', name, { slices: manySlices })
  }

  suspend(name) {
    return this.#saving('suspend', name)
  }

  createWithDisk(name) {
    return this.#saving('create', name, { hasDisk: true })
  }

  suspendWithDisk(name) {
    return this.#saving('suspend', name, { hasDisk: true })
  }

  /** Each guest differs from all others in RAM, kernel state and metadata, and its disk in content. */
  async #saving(method, name, { hasDisk = false, slices = { bytes: 0 } } = {}) {
    const generation = fs.readdirSync(this.#guests).length + 1
    fs.writeFileSync(path.join(this.#guests, String(generation)), '')
    const guest = this.#guestOf(generation, slices)
    const bhyve = await SimulatedBhyve.start(hasDisk ? { ...guest, writeRate } : guest)
    const disk = hasDisk ? this.#writeDisk(generation) : undefined
    mark({ event: 'bhyve', pid: bhyve.pid, generation, disk })
    const call = method === 'suspend' ? 'suspend' : 'create'
    const options = { name, onProgress, ...(hasDisk ? this.#diskOptions(call) : {}) }
    await this.#marked({ call, name, generation }, () => this.#save(method, options, guest))
    await bhyve.stop()
    fs.rmSync(path.join(this.#run, vm), { force: true })
  }

  #guestOf(generation, { bytes, zeroFraction }) {
    // Half of it is one run of zeros, long enough to become a hole.
    const memoryBytes = bytes + 163840 + 16384 * generation
    const guest = { vm, runDirectory: this.#run, memoryBytes, cpus: generation, suspendExitDelayMs: 0 }
    return zeroFraction === undefined ? guest : { ...guest, zeroFraction }
  }

  async #save(method, options, { memoryBytes }) {
    if (method === 'suspend') return this.#client.suspend(vm, options)
    if (method === 'create') return this.#client.createCheckpoint(vm, options)
    const { stage, diskReason } = await this.#memoryClient.createCheckpoint(vm, { ...options, memoryBytes })
    if (stage !== 'memory') throw new Error(`bhyve wrote on the disk: ${diskReason}`)
  }

  /** The disk is not in the store, so its own losses are not part of a state. Returns its digest. */
  #writeDisk(generation) {
    const content = diskContent(generation)
    fs.writeFileSync(this.#disk, content.subarray(0, 4096))
    fs.truncateSync(this.#disk, content.length)
    return digestOf(content)
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
      const digest = digestOf(fs.readFileSync(file))
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
