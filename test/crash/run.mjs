// `npm run test:crash -- --seed 1 --count 10000` kills processes before or after a system call of create, suspend,
// destroy, destroyAll, prune, pin and list, and examines the store. The processes that are killed do the work. This
// process only recovers and examines.
//
// --at DIR       puts the stores there. Creates in a memory stage need a tmpfs there
// --only NAME    only this operation of victim.mjs; may be repeated
import { execFile } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs, promisify } from 'node:util'
import { loadNative } from '../../dist/base/native.js'
import { jobs } from '../../dist/worker/jobs.js'
import { generator } from '../support/random.mjs'
import { tagOf, writeSet } from './sets.mjs'

const { values } = parseArgs({
  options: {
    seed: { type: 'string', default: '1' },
    count: { type: 'string', default: '300' },
    at: { type: 'string', default: fs.existsSync('/dev/shm') ? '/dev/shm' : os.tmpdir() },
    only: { type: 'string', multiple: true },
  },
})
const victim = fileURLToPath(new URL('victim.mjs', import.meta.url))
const run = promisify(execFile)
const native = loadNative()
const environment = { ...process.env, NODE_OPTIONS: '' }
const inMemory = ['createInMemory', 'failInMemory']
const usual = [
  ...['create', 'createWithDisks', 'failWithDisks', 'suspend', 'suspend', 'suspendWithDisks'],
  ...['destroy', 'destroy', 'prune', 'destroyAll', 'pin', 'list'],
  ...(isTmpfs(values.at) ? ['createInMemory', ...inMemory] : []),
]
const operations = values.only ?? usual
/** `list` after the manager of a memory stage was killed. */
const recovery = 'recoverMemory'
const suffixes = ['.ckp', '.ckp.kern', '.ckp.meta', '.ckp.manifest']

function isTmpfs(where) {
  const descriptor = fs.openSync(where)
  const result = native.isTmpfs(descriptor)
  fs.closeSync(descriptor)
  return result === 1
}

/** What the victim reports; undefined if it was killed. */
async function execute(strike) {
  try {
    const { stdout } = await run(process.execPath, [victim, JSON.stringify(strike)], {
      env: environment,
      timeout: 30_000,
    })
    return JSON.parse(stdout)
  } catch (error) {
    if (error.signal === 'SIGKILL') return undefined
    throw error
  }
}

/** A store, and for each name its legal contents: tags, or undefined for no checkpoint. */
class World {
  constructor(random, root) {
    this.random = random
    this.directory = path.join(root, 'vm1')
    this.legal = new Map()
    this.nextTag = 1
    this.mostPieces = 0
    /** Tags of live checkpoints whose manager and bhyve died. Each may be kept as `NAME-ID`. */
    this.keptTags = new Set()
    /** The tag of a live checkpoint that a dead bhyve completed in a memory stage, until another call may remove it. */
    this.lastState = undefined
    /** A memory stage waits for its recovery. */
    this.isInMemory = false
    this.memoryStage = path.join(root, 'memory')
    fs.mkdirSync(this.memoryStage, { mode: 0o700 })
    fs.mkdirSync(this.directory, { mode: 0o700 })
    this.snapshots = path.join(root, 'snapshots')
    fs.mkdirSync(this.snapshots)
    fs.writeFileSync(path.join(this.directory, 'notes.txt'), 'of somebody else')
    for (const name of ['one', 'two.old', 'three']) {
      if (random() < 0.7) this.bare(name)
      else this.legal.set(name, new Set([undefined]))
    }
  }

  /** A checkpoint as CBSD makes it: without a manifest. */
  bare(name) {
    const tag = this.nextTag++
    writeSet(path.join(this.directory, `${name}.ckp`), tag)
    this.legal.set(name, new Set([tag]))
  }

  pick(list) {
    return list[Math.floor(this.random() * list.length)]
  }

  /** Runs one operation and kills it at some call, or lets it finish. */
  async strikeOne(lengths) {
    const isRecovery = this.isInMemory && this.random() < 0.5
    const op = isRecovery ? 'list' : this.pick(operations)
    const name = this.pick([...this.legal.keys()])
    const tag = this.nextTag++
    const at = this.callOf(lengths.get(isRecovery ? recovery : op))
    const how = this.pick(['before', 'after'])
    const saved = path.join(path.dirname(this.directory), `saved-${tag}`)
    const { directory, memoryStage } = this
    // Its bhyve then survives its manager, as one that does not reply.
    const writerPid = inMemory.includes(op) && this.random() < 0.3 ? process.pid : undefined
    const strike = { op, name, tag, at, how, saved, directory, memoryStage, writerPid }
    const finished = (await execute(strike))?.calls
    // When the state of a VM is on disk, it must survive a kill at any call.
    const isSuspended = op.startsWith('suspend') && fs.existsSync(saved)
    // A VM that died while it was saved leaves its pieces, under a fresh name.
    if (op.startsWith('suspend') && !isSuspended) this.mostPieces++
    this.noteKept(strike, finished)
    this.note(op, name, tag, isSuspended ? 0 : finished)
    return { op, at, how, writerPid, finished }
  }

  /** A call at random. One of two kills hits the pass over the RAM in a memory stage. */
  callOf({ calls, pass }) {
    const range = pass.from > 0 && this.random() < 0.5 ? pass : { from: 1, to: calls + 3 }
    return range.from + Math.floor(this.random() * (range.to - range.from))
  }

  /** Which live checkpoint may be kept as `NAME-ID`, and which must be found. */
  noteKept({ op, tag, saved, writerPid }, finished) {
    const isLive = op.startsWith('create') || op.startsWith('fail')
    const hasEnded = finished === undefined && writerPid === undefined
    if (isLive && hasEnded) this.keptTags.add(tag)
    this.isInMemory = finished === undefined && (this.isInMemory || inMemory.includes(op))
    if (!['list', 'pin'].includes(op)) this.lastState = undefined
    if (op === 'createInMemory' && hasEnded && fs.existsSync(saved)) this.lastState = tag
  }

  note(op, name, tag, finished) {
    const add = (key, outcome) => {
      const before = finished === undefined ? this.legal.get(key) : []
      this.legal.set(key, new Set([...before, outcome]))
    }
    if (op.startsWith('create') || op.startsWith('suspend')) add(name, tag)
    if (op === 'destroy') add(name, undefined)
    if (op === 'destroyAll') for (const key of this.legal.keys()) add(key, undefined)
    // Which checkpoint is the newest is not known here: any of them may be removed.
    if (op === 'prune')
      for (const [key, outcomes] of this.legal) this.legal.set(key, new Set([...outcomes, undefined]))
  }

  /** What CBSD or `bhyve -r` would find without recovery: the files of a checkpoint belong together. */
  examineUnrecovered() {
    if (!fs.existsSync(this.directory)) return
    for (const name of this.legal.keys()) {
      if (fs.existsSync(path.join(this.directory, `${name}.ckp`))) tagOf(this.directory, name)
    }
  }

  /** Recovers, then examines everything. Throws if anything is illegal. */
  examine() {
    if (!fs.existsSync(this.directory))
      throw new Error('the directory is gone, although it had a file of another user')
    const before = new Map(this.legal)
    this.pieces = []
    this.removeSnapshots()
    let piecesLeft = this.mostPieces
    this.ageMemory()
    const listed = jobs.listCheckpoints(this.directory, 'vm1')
    const seen = new Map(listed.map((checkpoint) => [checkpoint.name, checkpoint]))
    for (const [name, outcomes] of before) {
      const checkpoint = seen.get(name)
      seen.delete(name)
      if (checkpoint !== undefined && checkpoint.state !== 'complete')
        throw new Error(`'${name}' is ${checkpoint.state}: ${JSON.stringify(checkpoint.problems)}`)
      if (checkpoint !== undefined) this.verify(name)
      const found = checkpoint === undefined ? undefined : tagOf(this.directory, name)
      if (!outcomes.has(found)) throw new Error(`'${name}' is ${found}; legal: ${[...outcomes].join(', ')}`)
      this.legal.set(name, new Set([found]))
    }
    for (const [name, { state, poweredOff }] of seen) {
      if (state !== 'complete' || poweredOff || !/-[0-9a-z]+$/.test(name)) continue
      this.verify(name)
      const tag = tagOf(this.directory, name)
      if (!this.keptTags.delete(tag))
        throw new Error(`'${name}' is ${tag}, which was never in a stage of a dead manager`)
      seen.delete(name)
      this.legal.set(name, new Set([tag]))
    }
    for (const [name, { state, poweredOff, files }] of seen) {
      if (state !== 'damaged' || !poweredOff || !/-[0-9a-z]+$/.test(name) || piecesLeft-- === 0) continue
      seen.delete(name)
      this.pieces.push(...Object.values(files).map((file) => path.basename(file)))
    }
    if (seen.size > 0) throw new Error(`unexpected checkpoints: ${[...seen.keys()].join(', ')}`)
    this.examineLastState()
    this.examineSnapshots()
    this.examineMemory()
    this.examineStrays()
  }

  /** A bhyve that runs has written nothing for a while. A manager that dies while it makes a hole changes the time. */
  ageMemory() {
    for (const entry of fs.readdirSync(this.memoryStage, { recursive: true }))
      fs.utimesSync(path.join(this.memoryStage, entry), 0, 0)
  }

  examineLastState() {
    const found = [...this.legal.values()].some((outcomes) => outcomes.has(this.lastState))
    if (this.lastState !== undefined && !found)
      throw new Error(`${this.lastState}, the last state of a VM, was in the memory stage and is gone`)
  }

  /** The next admission, which a limit of 0 refuses, removes what belongs to no stage. */
  examineMemory() {
    const request = { directory: this.memoryStage, maxBytes: 0, memoryBytes: 1, writerUid: 0 }
    jobs.enterMemory(undefined, request)
    const entries = fs.readdirSync(this.memoryStage)
    if (entries.length > 0) throw new Error(`left in the memory stage: ${entries.join(', ')}`)
  }

  /** What any call does next with the records that it finds. */
  removeSnapshots() {
    const ids = jobs.owedSnapshots(this.directory).map(({ owner }) => owner.id)
    for (const id of ids) fs.rmSync(path.join(this.snapshots, id), { force: true })
    if (ids.length > 0) jobs.forgetSnapshots(this.directory, ids, false)
  }

  /** The snapshots are those of the published checkpoints: none is left, none is missing. */
  examineSnapshots() {
    const wanted = [...jobs.snapshotsByName(this.directory).values()].map(({ owner }) => owner.id).sort()
    const found = fs.readdirSync(this.snapshots).sort()
    if (JSON.stringify(wanted) !== JSON.stringify(found))
      throw new Error(`snapshots: ${found.join(', ')}; wanted: ${wanted.join(', ')}`)
  }

  /** Verifies every byte, if there are digests. */
  verify(name) {
    const { problems, recorded, descriptors } = jobs.openCheckpoint(this.directory, name)
    if (problems.length > 0) throw new Error(`verification of '${name}' fails: ${JSON.stringify(problems)}`)
    if (recorded === undefined) return
    const { digests, memoryBytes } = recorded
    const stop = new Int32Array(1)
    const slice = { from: 0, to: memoryBytes, chunkBytes: digests.memory.chunkBytes, stop }
    const isIntact =
      jobs.isListComplete(descriptors.manifest, recorded, stop) &&
      jobs.compareSlice(descriptors.memory, descriptors.manifest, recorded, slice).damaged.length === 0 &&
      jobs.digestFile(descriptors.kernel, stop).digest === digests.kernel &&
      jobs.digestFile(descriptors.metadata, stop).digest === digests.metadata
    for (const descriptor of Object.values(descriptors)) native.close(descriptor)
    if (!isIntact) throw new Error(`the content of '${name}' differs from what was published`)
  }

  examineStrays() {
    const staging = path.join(this.directory, '.staging')
    const left = fs.existsSync(staging) ? fs.readdirSync(staging) : []
    if (left.length > 0) throw new Error(`left in .staging: ${left.join(', ')}`)
    const known = new Set(['notes.txt', '.staging', ...this.pieces])
    for (const [name, [found]] of this.legal)
      if (found !== undefined) for (const suffix of suffixes) known.add(name + suffix)
    const strays = fs.readdirSync(this.directory).filter((file) => !known.has(file))
    if (strays.length > 0) throw new Error(`strays: ${strays.join(', ')}`)
  }
}

/** The number of calls of each operation on an ordinary store. */
async function measure(root) {
  const lengths = new Map()
  for (const op of new Set([...operations, 'list'])) lengths.set(op, await measureOne(root, { op, at: -1 }))
  if (!operations.includes('createInMemory')) return lengths
  // Its manager was killed in the middle of the pass.
  const { pass } = lengths.get('createInMemory')
  const at = Math.floor((pass.from + pass.to) / 2)
  lengths.set(recovery, await measureOne(root, { op: 'createInMemory', at }, { op: 'list', at: -1 }))
  return lengths
}

/** Strikes a new store and returns what the last victim reports. */
async function measureOne(root, ...strikes) {
  const { directory, memoryStage } = new World(() => 0.5, fs.mkdtempSync(path.join(root, 'measure-')))
  const saved = path.join(path.dirname(directory), 'saved')
  let result
  for (const strike of strikes)
    result = await execute({ name: 'one', tag: 9, how: 'before', directory, memoryStage, saved, ...strike })
  return result
}

async function scenario(seed, root, lengths) {
  const random = generator(seed)
  const world = new World(random, fs.mkdtempSync(path.join(root, 'world-')))
  const history = []
  try {
    // Several kills in a row interrupt recovery too, and the recovery from that.
    const strikes = 1 + Math.floor(random() * 4)
    for (let i = 0; i < strikes; i++) {
      history.push(await world.strikeOne(lengths))
      world.examineUnrecovered()
    }
    world.examine()
    world.examine()
  } catch (error) {
    throw new Error(`seed ${seed}: ${JSON.stringify(history)}: ${error.message}`, { cause: error })
  }
  fs.rmSync(path.dirname(world.directory), { recursive: true })
  return history.filter(({ finished }) => finished === undefined).length
}

const root = fs.mkdtempSync(path.join(values.at, 'bhyve-crash-'))
try {
  const lengths = await measure(root)
  let seed = Number(values.seed)
  let kills = 0
  const lane = async () => {
    while (kills < Number(values.count)) kills += await scenario(seed++, root, lengths)
  }
  await Promise.all([lane(), lane()])
  const calls = [...lengths].map(([op, length]) => `${op} ${length.calls}`).join(', ')
  console.log(`${kills} kills in ${seed - Number(values.seed)} stores, all outcomes legal (calls: ${calls})`)
} finally {
  fs.rmSync(root, { recursive: true, force: true })
}
