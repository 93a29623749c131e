// Puts a state on a real file system and inspects it with the public API only, as a manager does after the next boot:
// the recorded boot id is replaced, and no recorded process lives. Returns an observation, which rules.mjs judges.
import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { createClient } from '../../dist/index.js'
import { loadNative } from '../../dist/base/native.js'
import { simulatedBhyve } from '../../dist/simulator/index.js'
import { digestOf, writeData } from './sparse.mjs'

const native = loadNative()
const vm = 'vm1'
const otherBoot = '0f0e0d0c-0b0a-4908-8706-050403020100'
const bhyveArguments = ['-c1', '-m4M', '-s0,hostbridge', '-s31,lpc', '-o', 'rundir=/nonexistent', vm]

export class Judge {
  #root
  #observations = new Map()
  #digests = new WeakMap()
  #afterBoot = new WeakMap()
  #slots = 0

  constructor(root) {
    this.#root = root
  }

  get distinct() {
    return this.#observations.size
  }

  /** Equal trees are inspected once. */
  observe(tree, bootId) {
    const key = this.#keyOf(tree)
    if (!this.#observations.has(key)) this.#observations.set(key, this.#inspect(tree, bootId, key))
    return this.#observations.get(key)
  }

  #keyOf(tree) {
    const hash = createHash('sha1')
    const names = new Map()
    for (const { path: file, isDirectory, data, mtime, id } of [...tree].sort(byPath)) {
      const first = names.get(id) ?? names.set(id, file).get(id)
      hash.update(isDirectory ? `${file}/\n` : `${file} ${first} ${mtime} ${this.digest(data)}\n`)
    }
    return hash.digest('hex')
  }

  digest(data) {
    if (!this.#digests.has(data)) this.#digests.set(data, digestOf(data))
    return this.#digests.get(data)
  }

  async #inspect(tree, bootId, key) {
    const store = path.join(this.#root, `state-${this.#slots++}`)
    this.materialise(tree, bootId, store)
    try {
      return await observation(store, parseInt(key[0], 16) % 2 === 0)
    } finally {
      fs.rmSync(store, { recursive: true, force: true })
    }
  }

  materialise(tree, bootId, store) {
    fs.mkdirSync(store)
    const names = new Map()
    for (const { path: file, isDirectory, data, mtime, mode, id } of tree) {
      const full = path.join(store, file)
      if (isDirectory) fs.mkdirSync(full, { mode })
      else if (names.has(id)) fs.linkSync(names.get(id), full)
      else {
        const descriptor = fs.openSync(full, 'w', mode)
        writeData(descriptor, this.#rebooted(data, bootId))
        native.setModifiedAt(descriptor, mtime)
        fs.closeSync(descriptor)
        names.set(id, full)
      }
    }
  }

  /** Replaces the boot id by that of another boot, of equal length. */
  #rebooted(data, bootId) {
    if (data.length > 8192) return data
    if (!this.#afterBoot.has(data)) {
      const at = data.indexOf(bootId)
      const changed = at === -1 ? data : Buffer.from(data)
      if (at !== -1) changed.write(otherBoot, at)
      this.#afterBoot.set(data, changed)
    }
    return this.#afterBoot.get(data)
  }
}

function byPath(one, other) {
  return one.path < other.path ? -1 : 1
}

/** The first call recovers, whichever it is. Half of the states therefore begin with suspendedCheckpoint. */
async function observation(store, listsFirst) {
  const client = createClient({ runDirectory: store, checkpointDirectory: store })
  const early = listsFirst ? undefined : await outcome(client.suspendedCheckpoint(vm))
  const first = await view(client)
  const { listed, suspended } = first
  const details = new Map()
  for (const { name } of listed.value ?? []) details.set(name, await detailsOf(client, name))
  const second = await view(client)
  const isSame = JSON.stringify(first) === JSON.stringify(second)
  return { listed, suspended, early, isSame, second, details, files: filesIn(store) }
}

async function outcome(promise) {
  try {
    return { value: await promise }
  } catch (error) {
    return { code: error.code ?? 'none', message: error.message, blockers: error.blockers }
  }
}

async function view(client) {
  const listed = await outcome(client.listCheckpoints(vm))
  const suspended = await outcome(client.suspendedCheckpoint(vm))
  return {
    listed: listed.value === undefined ? listed : { value: listed.value.map(summary) },
    suspended: suspended.value === undefined ? suspended : { value: suspended.value.name },
  }
}

function summary({ name, state, poweredOff, pinned, restoredAt, problems, disks = [] }) {
  const codes = problems.map(({ code }) => code)
  return { name, state, poweredOff, pinned, restoredAt, problems: codes, disks: disks.map(placeOf) }
}

/** Where a snapshot is, in the VM's directory. The recorded path begins with that of the recording. */
function placeOf({ snapshot }) {
  return snapshot.split('/').slice(-3).join('/')
}

async function detailsOf(client, name) {
  const got = await outcome(client.getCheckpoint(vm, name))
  const verified = await outcome(client.verifyCheckpoint(vm, name, { depth: 'content' }))
  const plan = await outcome(client.planRestore(vm, name, { args: bhyveArguments, bhyve: simulatedBhyve }))
  return {
    got: got.code ?? 'resolved',
    verified:
      verified.value === undefined ? { ok: false, code: verified.code, problems: [] } : shown(verified.value),
    blockers: plan.value?.blockers.map(({ code }) => code) ?? [plan.code],
  }
}

function shown({ ok, problems }) {
  return { ok, problems: problems.map(({ code }) => code) }
}

/** All files afterwards, with digests and link counts. */
function filesIn(top, below = '') {
  return fs.readdirSync(path.join(top, below)).flatMap((name) => {
    const file = path.join(below, name)
    const { nlink, size } = fs.lstatSync(path.join(top, file))
    if (fs.lstatSync(path.join(top, file)).isDirectory())
      return [{ file, isDirectory: true }, ...filesIn(top, file)]
    return [
      { file, isDirectory: false, nlink, size, digest: digestOf(fs.readFileSync(path.join(top, file))) },
    ]
  })
}
