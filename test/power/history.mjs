// Applies a trace to a small file system in memory and keeps every change with the number of its step, so that
// disks.mjs can compute what had been changed and what had been flushed at any step.
//
// Assumptions: write() continues where the last write() to that file ended, and starts at 0 after each open (each file
// has one writer at a time); a call takes effect when it returns. An unknown call that changes a store is an error.
import { Buffer } from 'node:buffer'
import { resolve } from 'node:path'

const marks = '/power-mark/'
const changing = new Set(['truncate', 'writev', 'pwritev', 'pwritev2', 'copy_file_range', 'sendfile'])

/** A file or directory. `changes[i]` turned `contents[i]` into `contents[i + 1]`. */
export class Inode {
  constructor(id, { isDirectory, data = Buffer.alloc(0), mtime = 0n, mode }) {
    this.id = id
    this.isDirectory = isDirectory
    this.mode = mode
    this.changes = []
    this.contents = [data]
    this.times = [mtime]
    this.position = 0
    /** Each fsync: the step at which it returned, and how many changes it covers. */
    this.syncs = []
  }

  change(at, kind, range, data, mtime) {
    this.changes.push({ at, kind, ...range })
    this.contents.push(data)
    this.times.push(mtime)
  }

  get data() {
    return this.contents.at(-1)
  }

  /** The number of changes before a step. */
  countAt(step) {
    const later = this.changes.findIndex(({ at }) => at >= step)
    return later === -1 ? this.changes.length : later
  }
}

/**
 * `steps`: what happened, in order. `units`: changes of directories, `{ at, kind, inode, from, to }`, where `from` and
 * `to` are `{ dir, name }`. `syncs`: each fsync, `{ at, startedAt, inode }`.
 */
export class History {
  constructor(root, initial) {
    this.root = root
    this.steps = []
    this.units = []
    this.syncs = []
    this.inodes = []
    this.entries = new Map()
    this.top = this.make({ isDirectory: true, mode: 0o700 })
    const known = new Map()
    for (const { path, ino, ...facts } of initial) {
      if (!known.has(ino)) known.set(ino, this.make(facts))
      this.entries.set(keyOf(this.placeOf(`${root}/${path}`)), known.get(ino).id)
    }
    this.initialEntries = new Map(this.entries)
    /** Working directories by thread, of those that have changed theirs. */
    this.workingDirectories = new Map()
    /** `stepsAtEvent[n]`: the number of steps when the n-th event ended. */
    this.stepsAtEvent = []
  }

  apply(event) {
    this.stepsAtEvent.push(this.steps.length)
    if (event.call === 'openat' && event.args[1]?.toString().startsWith(marks)) return this.#mark(event)
    if (event.call === 'execve') return this.#executed(event)
    if (event.result < 0) return
    const handler = handlers[event.call]
    const paths = pathsOf(event, this.workingDirectories.get(event.pid))
    if (event.call === 'fchdir') this.workingDirectories.set(event.pid, paths[0])
    if (!paths.some((path) => this.#isInside(path))) return
    if (isUnsupported(event)) throw new Error(`the model does not support ${event.call} of '${paths[0]}'`)
    handler?.(this, event, paths)
  }

  #mark({ pid, args }) {
    this.step({ mark: JSON.parse(args[1].toString().slice(marks.length)), pid })
  }

  #executed({ pid, args, result }) {
    if (result === 0 && String(args[0]).endsWith('/simulator/bhyve.js'))
      this.step({ mark: { event: 'started' }, pid })
  }

  step(facts) {
    this.steps.push(facts)
    return this.steps.length - 1
  }

  #isInside(path) {
    return path === this.root || path.startsWith(`${this.root}/`)
  }

  make(facts) {
    const inode = new Inode(this.inodes.length, facts)
    this.inodes.push(inode)
    return inode
  }

  /** The directory and the name of a path. */
  placeOf(path) {
    const names = path.slice(this.root.length + 1).split('/')
    let directory = this.top
    for (const name of names.slice(0, -1))
      directory = this.inodes[this.entries.get(keyOf({ dir: directory.id, name }))]
    if (directory === undefined) throw new Error(`the model does not have the directory of '${path}'`)
    return { dir: directory.id, name: names.at(-1) }
  }

  /** Undefined if nothing has that path. */
  find(path) {
    if (path === this.root) return this.top
    return this.inodes[this.entries.get(keyOf(this.placeOf(path)))]
  }

  shown(path) {
    return path === this.root ? '.' : path.slice(this.root.length + 1)
  }
}

export function keyOf({ dir, name }) {
  return `${dir}/${name}`
}

/** A trace does not contain the bytes of a clone. Record on a file system that cannot clone, for example tmpfs. */
function isUnsupported({ call, args }) {
  return changing.has(call) || (call === 'ioctl' && /CLONE/.test(args[1]))
}

/** Calls that take a directory and a name. All others take a path, or a descriptor of the file itself. */
const relative = new Set(['openat', 'mkdirat', 'renameat', 'renameat2', 'linkat', 'unlinkat'])

/** The paths of the files that a call uses. */
function pathsOf({ call, args }, workingDirectory = '/') {
  if (!relative.has(call)) {
    const isPath = (arg) => Buffer.isBuffer(arg) && args[0].path === undefined
    const absolute = (arg) => resolve(workingDirectory, arg.toString())
    return args.flatMap((arg) => (isPath(arg) ? [absolute(arg)] : isFile(arg) ? [arg.path] : []))
  }
  return args.flatMap((arg, index) => (isFile(arg) ? [resolve(arg.path, args[index + 1].toString())] : []))
}

function isFile(arg) {
  return arg.path !== undefined && !arg.isDeleted
}

function modeOf(text) {
  return text === undefined ? 0o600 : parseInt(text, 8)
}

function opened(history, { args, pid, time }, [path]) {
  const flags = args.find((arg) => typeof arg === 'string' && arg.startsWith('O_')) ?? ''
  if (!/O_WRONLY|O_RDWR|O_CREAT/.test(flags)) return
  const existing = history.find(path)
  if (existing !== undefined) {
    existing.position = 0
    if (!flags.includes('O_TRUNC') || existing.data.length === 0) return
    const at = history.step({ label: `truncate ${history.shown(path)}`, pid, inode: existing.id })
    existing.change(at, 'truncate', { from: 0, to: existing.data.length }, Buffer.alloc(0), time)
    return
  }
  const to = history.placeOf(path)
  const inode = history.make({ isDirectory: false, mtime: time, mode: modeOf(args.at(-1)) & 0o777 })
  added(history, { label: `create ${history.shown(path)}`, pid, kind: 'add', inode: inode.id, to })
}

/** A change of directories. */
function added(history, { label, pid, kind, inode, from, to }) {
  const at = history.step({ label, pid, inode, isCreation: kind === 'add' })
  history.units.push({ at, kind, inode, from, to })
  if (from !== undefined && history.entries.get(keyOf(from)) === inode) history.entries.delete(keyOf(from))
  if (to !== undefined) history.entries.set(keyOf(to), inode)
}

function made(history, { args, pid }, [path]) {
  const to = history.placeOf(path)
  const inode = history.make({ isDirectory: true, mode: modeOf(args.at(-1)) & 0o777 })
  added(history, { label: `mkdir ${history.shown(path)}`, pid, kind: 'add', inode: inode.id, to })
}

function linked(history, { pid }, [old, path]) {
  const to = history.placeOf(path)
  const label = `link ${history.shown(old)} -> ${history.shown(path)}`
  added(history, { label, pid, kind: 'add', inode: history.find(old).id, to })
}

function renamed(history, { pid }, [old, path]) {
  const label = `rename ${history.shown(old)} -> ${history.shown(path)}`
  const inode = history.find(old).id
  // rename() of one name of a file to another name of the same file does nothing.
  if (history.find(path)?.id === inode) return
  added(history, { label, pid, kind: 'move', inode, from: history.placeOf(old), to: history.placeOf(path) })
}

function removed(history, { pid }, [path]) {
  const inode = history.find(path)
  const label = `${inode.isDirectory ? 'rmdir' : 'unlink'} ${history.shown(path)}`
  added(history, { label, pid, kind: 'remove', inode: inode.id, from: history.placeOf(path) })
}

function written(history, { call, args, pid, time, result }, [path]) {
  const inode = history.find(path)
  const from = call === 'pwrite64' ? Number(args[3]) : inode.position
  const to = from + result
  if (call === 'write') inode.position = to
  const data = Buffer.alloc(Math.max(inode.data.length, to))
  inode.data.copy(data)
  args[1].copy(data, from, 0, result)
  const at = history.step({
    label: `write ${history.shown(path)} ${from}+${result}`,
    pid,
    inode: inode.id,
    isWrite: true,
  })
  inode.change(at, 'write', { from, to }, data, time)
}

function punched(history, { args, pid, time }, [path]) {
  if (!args[1].includes('PUNCH_HOLE')) throw new Error(`the model does not support fallocate ${args[1]}`)
  const inode = history.find(path)
  const from = Number(args[2])
  const to = Math.min(from + Number(args[3]), inode.data.length)
  const data = Buffer.from(inode.data).fill(0, from, to)
  const at = history.step({
    label: `punch ${history.shown(path)} ${from}+${to - from}`,
    pid,
    inode: inode.id,
  })
  inode.change(at, 'punch', { from, to }, data, time)
}

function resized(history, { args, pid, time }, [path]) {
  const inode = history.find(path)
  const [before, size] = [inode.data.length, Number(args[1])]
  if (before === size) return
  const data = Buffer.alloc(size)
  inode.data.copy(data)
  const at = history.step({ label: `resize ${history.shown(path)} ${size}`, pid, inode: inode.id })
  inode.change(at, 'resize', { from: Math.min(before, size), to: size }, data, time)
}

function dated(history, { args, pid, time }, [path]) {
  const inode = history.find(path)
  const stamps = [...args.at(-2).matchAll(/tv_sec=(\d+), tv_nsec=(\d+)/g)].at(-1)
  const mtime = stamps === undefined ? time : BigInt(stamps[1]) * 1_000_000_000n + BigInt(stamps[2])
  const at = history.step({ label: `utimes ${history.shown(path)}`, pid, inode: inode.id })
  inode.change(at, 'time', { from: 0, to: 0 }, inode.data, mtime)
}

function synced(history, { pid, startedAt: eventStart }, [path]) {
  const startedAt = history.stepsAtEvent[eventStart] ?? history.steps.length
  const inode = history.find(path)
  const at = history.step({ label: `fsync ${history.shown(path)}`, pid, inode: inode.id, isSync: true })
  inode.syncs.push({ at, covered: inode.countAt(startedAt) })
  history.syncs.push({ at, startedAt, inode: inode.id })
}

function everythingSynced() {
  throw new Error('the model does not support sync() and syncfs()')
}

const handlers = {
  ...{
    openat: opened,
    open: opened,
    creat: opened,
    mkdir: made,
    mkdirat: made,
    link: linked,
    linkat: linked,
  },
  ...{
    rename: renamed,
    renameat: renamed,
    renameat2: renamed,
    unlink: removed,
    unlinkat: removed,
    rmdir: removed,
  },
  ...{
    write: written,
    pwrite64: written,
    ftruncate: resized,
    fallocate: punched,
    utimensat: dated,
    fsync: synced,
    fdatasync: synced,
  },
  ...{ sync: everythingSynced, syncfs: everythingSynced },
}
