// Records each operation with strace, with all its threads and the simulated bhyve, and loads recordings. A recording
// is a directory with the trace, and with facts.json: the store before the operation, and the boot id.
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { History } from './history.mjs'
import { operations } from './operations.mjs'
import { digestOf } from './sparse.mjs'
import { eventsIn } from './trace.mjs'

const operator = fileURLToPath(new URL('operator.mjs', import.meta.url))
const calls =
  'openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,write,pwrite64,writev,' +
  'pwritev,pwritev2,ftruncate,truncate,fallocate,fsync,fdatasync,sync,syncfs,utimensat,execve,copy_file_range,sendfile,' +
  'ioctl,fchdir'
const tmpfs = '/dev/shm'
const straceOptions = [
  '-f',
  '-y',
  '-xx',
  '-ttt',
  '-qqq',
  '-s',
  '1048576',
  '--seccomp-bpf',
  '-e',
  'signal=none',
]

/** Records the operations that have no recording yet. */
export async function recordAll(directory, names, log) {
  const missing = names.filter((name) => !fs.existsSync(path.join(directory, name, 'facts.json')))
  const lane = async () => {
    for (let name = missing.shift(); name !== undefined; name = missing.shift()) {
      log(`recording ${name}`)
      await record(path.join(directory, name), name)
    }
  }
  // The lanes wait most of the time, so three of them run at once.
  await Promise.all([lane(), lane(), lane()])
}

async function record(directory, name) {
  makeDirectories(directory)
  fs.mkdirSync(path.join(directory, 'store'))
  if (operations[name].setup !== undefined) await run([process.execPath, operator, name, directory, 'setup'])
  await trace(directory, name)
}

/** Records the recovery from the state `base`, which `fill` puts into a directory. */
export async function recordRecovery(directory, base, fill) {
  makeDirectories(directory)
  fill(path.join(directory, 'store'))
  await trace(directory, 'recover', base)
}

function makeDirectories(directory) {
  fs.rmSync(directory, { recursive: true, force: true })
  for (const part of ['run', 'guests']) fs.mkdirSync(path.join(directory, part), { recursive: true })
}

/**
 * The memory stage is removed afterwards: the power fails before its content is found again. A recording on a disk needs
 * a tmpfs elsewhere.
 */
async function trace(directory, name, base) {
  const store = path.join(directory, 'store')
  const initial = treeOf(store)
  const output = path.join(directory, 'trace')
  const memory = fs.mkdtempSync(path.join(tmpfs, 'bhyve-power-memory-'))
  const traced = [process.execPath, operator, name, directory, 'traced']
  try {
    const command = ['strace', ...straceOptions, '-e', `trace=${calls}`, '-o', output, ...traced]
    await run(command, { POWER_MEMORY: memory })
  } finally {
    fs.rmSync(memory, { recursive: true })
  }
  const bootId = fs.readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim()
  const facts = { store, memory, bootId, initial, base }
  fs.writeFileSync(path.join(directory, 'facts.json'), JSON.stringify(facts))
}

async function run([command, ...args], more = {}) {
  const environment = { ...process.env, NODE_OPTIONS: '', ...more }
  const child = spawn(command, args, { stdio: ['ignore', 'inherit', 'inherit'], env: environment })
  const status = await new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('exit', (code, signal) => resolve(signal ?? code))
  })
  if (status !== 0) throw new Error(`'${args.join(' ')}' ended with ${status}`)
}

function treeOf(top, below = '') {
  return fs.readdirSync(path.join(top, below)).flatMap((name) => {
    const shown = path.join(below, name)
    const full = path.join(top, shown)
    const status = fs.statSync(full, { bigint: true })
    const isDirectory = status.isDirectory()
    const mode = Number(status.mode) & 0o777
    const facts = { path: shown, ino: Number(status.ino), isDirectory, mtime: String(status.mtimeNs), mode }
    if (isDirectory) return [facts, ...treeOf(top, shown)]
    return [{ ...facts, data: fs.readFileSync(full).toString('base64') }]
  })
}

/** A recorded operation: its history, and the digests of each generation. A recovery has those of its `base`. */
export function load(directory, name) {
  const { store, memory, bootId, initial, base } = JSON.parse(
    fs.readFileSync(path.join(directory, name, 'facts.json'), 'utf8'),
  )
  const decoded = initial.map(({ data, mtime, ...facts }) => {
    const file = { ...facts, mtime: BigInt(mtime) }
    return data === undefined ? file : { ...file, data: Buffer.from(data, 'base64') }
  })
  const history = new History(store, decoded)
  const inMemory = new History(memory, [])
  for (const event of eventsIn(fs.readFileSync(path.join(directory, name, 'trace'), 'latin1'))) {
    history.apply(event)
    inMemory.apply(event)
  }
  if (base !== undefined) return { name, bootId, history, base }
  const standing = standingBefore(decoded)
  const generations = { ...standing.generations, ...savedIn(history), ...savedInMemory(inMemory) }
  return { name, bootId, history, generations, standing: standing.names, foreign: standing.foreign }
}

/** A checkpoint that the setup made is the generation `setup:NAME`. */
function standingBefore(tree) {
  const files = new Map(tree.map((file) => [file.path, file]))
  const names = {}
  const generations = {}
  for (const { path: file } of tree.filter((one) => one.path.endsWith('.ckp'))) {
    const name = path.basename(file, '.ckp')
    const {
      id: checkpointId,
      pinned,
      poweredOff,
      restores = [],
      disks,
    } = JSON.parse(files.get(`${file}.manifest`).data)
    const id = `setup:${name}`
    const [memory, kernel, metadata] = ['', '.kern', '.meta'].map((ending) =>
      digestOf(files.get(file + ending).data),
    )
    const snapshot = `${path.dirname(file)}/.disks/${checkpointId}/0`
    const disk = disks === undefined ? undefined : digestOf(files.get(snapshot).data)
    generations[id] = { memory, kernel, metadata, poweredOff, disk }
    names[name] = { generation: id, pinned, restored: restores.length > 0 }
  }
  const notes = tree.find((file) => path.basename(file.path) === 'notes.txt')
  return { names, generations, foreign: notes && { path: notes.path, digest: digestOf(notes.data) } }
}

/** What each simulated bhyve wrote into the store, and the step of its last write. */
function savedIn(history) {
  const generations = {}
  const suspends = new Set(
    history.steps.filter(({ mark }) => mark?.call === 'suspend').map(({ mark }) => mark.generation),
  )
  for (const { generation, disk, inodes, endedAt } of savesIn(history)) {
    const contents = Object.entries(inodes).map(([part, id]) => [part, digestOf(history.inodes[id].data)])
    const poweredOff = suspends.has(generation)
    generations[generation] = { ...Object.fromEntries(contents), inodes, endedAt, poweredOff, disk }
  }
  return generations
}

/** What each simulated bhyve wrote into the memory stage. Later a manager makes holes in its files and removes them. */
function savedInMemory(history) {
  const generations = {}
  for (const { generation, inodes, endedAt } of savesIn(history)) {
    const contents = Object.entries(inodes).map(([part, id]) => {
      const inode = history.inodes[id]
      return [part, digestOf(inode.contents[inode.countAt(endedAt + 1)])]
    })
    generations[generation] = { ...Object.fromEntries(contents), poweredOff: false }
  }
  return generations
}

/** The files that each simulated bhyve created, and the step of its last write. */
function savesIn(history) {
  const marks = history.steps.flatMap(({ mark }) => (mark?.event === 'bhyve' ? [mark] : []))
  return marks.flatMap(({ pid, generation, disk }) => {
    const mine = history.steps.flatMap((step, at) => (step.pid === pid ? [{ ...step, at }] : []))
    const made = mine.filter(({ isCreation }) => isCreation)
    if (made.length === 0) return []
    // If the guest could not be frozen, the save is repeated.
    const inodeOf = (ending) => made.findLast(({ label }) => endingOf(label) === ending).inode
    const inodes = { memory: inodeOf(''), kernel: inodeOf('.kern'), metadata: inodeOf('.meta') }
    const endedAt = mine.filter(({ isWrite }) => isWrite).at(-1).at
    return [{ generation, disk, inodes, endedAt }]
  })
}

function endingOf(label) {
  return /\.(kern|meta)$/.exec(label)?.[0] ?? ''
}
