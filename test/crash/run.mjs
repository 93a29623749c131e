// `npm run test:crash -- --seed 1 --count 10000` kills processes before or after a system call of create, suspend,
// destroy, destroyAll, prune, pin and list, and examines the store. The processes that are killed do the work. This
// process only recovers and examines.
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
  },
})
const victim = fileURLToPath(new URL('victim.mjs', import.meta.url))
const run = promisify(execFile)
const native = loadNative()
const environment = { ...process.env, NODE_OPTIONS: '' }
const operations = [
  ...['create', 'createWithDisks', 'failWithDisks', 'suspend', 'suspend', 'suspendWithDisks'],
  ...['destroy', 'destroy', 'prune', 'destroyAll', 'pin', 'list'],
]
const suffixes = ['.ckp', '.ckp.kern', '.ckp.meta', '.ckp.manifest']

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
    const op = this.pick(operations)
    const name = this.pick([...this.legal.keys()])
    const tag = this.nextTag++
    const at = 1 + Math.floor(this.random() * (lengths.get(op) + 2))
    const how = this.pick(['before', 'after'])
    const saved = path.join(path.dirname(this.directory), `saved-${tag}`)
    const strike = { op, name, tag, at, how, saved, directory: this.directory }
    const finished = await this.execute(strike)
    // When the state of a VM is on disk, it must survive a kill at any call.
    const isSuspended = op.startsWith('suspend') && fs.existsSync(saved)
    // A VM that died while it was saved leaves its pieces, under a fresh name.
    if (op.startsWith('suspend') && !isSuspended) this.mostPieces++
    if (['create', 'createWithDisks', 'failWithDisks'].includes(op) && finished === undefined)
      this.keptTags.add(tag)
    this.note(op, name, tag, isSuspended ? 0 : finished)
    return { op, at, how, finished }
  }

  async execute(strike) {
    try {
      const { stdout } = await run(process.execPath, [victim, JSON.stringify(strike)], {
        env: environment,
        timeout: 30_000,
      })
      return Number(stdout)
    } catch (error) {
      if (error.signal === 'SIGKILL') return undefined
      throw error
    }
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
    this.examineSnapshots()
    this.examineStrays()
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
  for (const op of new Set(operations)) {
    const world = new World(() => 0.5, fs.mkdtempSync(path.join(root, 'measure-')))
    lengths.set(
      op,
      await world.execute({
        ...{ op, name: 'one', tag: 9, at: -1, how: 'before', directory: world.directory },
        saved: path.join(path.dirname(world.directory), 'saved'),
      }),
    )
  }
  return lengths
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
  const calls = [...lengths].map(([op, length]) => `${op} ${length}`).join(', ')
  console.log(`${kills} kills in ${seed - Number(values.seed)} stores, all outcomes legal (calls: ${calls})`)
} finally {
  fs.rmSync(root, { recursive: true, force: true })
}
