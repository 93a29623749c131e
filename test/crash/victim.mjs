// Does one operation on a store and is killed before or after its n-th system call. Runs the store's own code on its
// main thread, so that the numbers of the calls are the same in every run.
import { randomUUID } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { loadNative } from '../../dist/base/native.js'
import { jobs } from '../../dist/worker/jobs.js'
import { sliceBytesFor } from '../../dist/checkpoint/slice.js'
import { beginDeferring, takeRemovals } from '../../dist/store/staging/removed.js'
import { memoryBytesOf, writeSet } from './sets.mjs'

const strike = JSON.parse(process.argv[2])
const native = loadNative()
let calls = 0

function kill() {
  process.kill(process.pid, 'SIGKILL')
  for (;;); // wait for the signal
}

function struck(target, name) {
  const original = target[name].bind(target)
  target[name] = (...args) => {
    const mine = ++calls === strike.at
    if (mine && strike.how === 'before') kill()
    const result = original(...args)
    if (mine && strike.how === 'after') kill()
    return result
  }
}

const watched = [
  'openPath',
  'openAt',
  'makeDirectoryAt',
  'statusAt',
  'statusOf',
  'renameAt',
  'unlinkAt',
  'removeDirectoryAt',
  'readDirectory',
  'sync',
  'lock',
  'unlock',
  'close',
  'freeSpace',
  'isTmpfs',
  'holeBlockBytes',
  'dataRange',
  'punchHole',
  'beginWriting',
  'setModifiedAt',
]
for (const name of watched) struck(native, name)
for (const name of ['writeSync', 'readSync', 'fstatSync', 'ftruncateSync']) struck(fs, name)

const { directory, name, tag, memoryStage } = strike
/** The calls during which RAM is copied out of the memory stage: the first one, and the one after the last. */
const pass = { from: 0, to: 0 }
/** A disk snapshot is a file in this directory, named after the checkpoint's id. */
const snapshots = path.join(path.dirname(directory), 'snapshots')
const id = randomUUID()
const disks = [{ kind: 'file', disks: [{ path: '/disk', snapshot: path.join(snapshots, id) }] }]
/** An hour ago: recovery need not wait for the reply of a bhyve that still runs. */
const longAgo = Date.now() / 1000 - 3600

/** The handle of a new stage, and the path of its inbox. */
function newStage(poweroff) {
  const made = jobs.createStage({
    directory,
    name,
    ifExists: 'replace',
    durable: true,
    writerUid: process.geteuid(),
    intent: { vm: 'vm1', name, ifExists: 'replace', poweroff },
  })
  const { directory: descriptor, stage } = made.descriptors
  const handle = { directoryPath: directory, directory: descriptor, stage, id: made.id }
  return { handle, inbox: path.dirname(made.requestPath) }
}

/**
 * A stage with checkpoint files, as bhyve leaves it. This process is also the recorded bhyve, which dies with its
 * manager, unless `strike` names another process.
 */
function savedStage(poweroff) {
  const { handle, inbox } = newStage(poweroff)
  recordWriter(handle)
  writeSet(path.join(inbox, 'ckp'), tag)
  return handle
}

/** As `savedStage`, with the inbox in the memory stage, and with enough RAM for more than one slice. */
function savedInMemory() {
  const { handle } = newStage(false)
  const memoryBytes = memoryBytesOf(tag, true)
  const request = { directory: memoryStage, maxBytes: undefined, memoryBytes, writerUid: process.geteuid() }
  const admission = jobs.enterMemory(handle, request)
  if (admission.kind !== 'admitted') throw new Error(`the memory stage is refused: ${admission.reason}`)
  const { path: memoryPath, requestPath, descriptors } = admission
  handle.memory = { descriptor: descriptors.memory, path: memoryPath }
  native.close(descriptors.in)
  recordWriter(handle)
  writeSet(requestPath, tag, true)
  for (const suffix of ['', '.kern', '.meta']) fs.utimesSync(requestPath + suffix, longAgo, longAgo)
  // From here on these files are the last state of a VM whose bhyve dies.
  fs.writeFileSync(strike.saved, '')
  return handle
}

function recordWriter(handle) {
  const pid = strike.writerPid ?? process.pid
  const { startedAt } = native.processStatus(pid)
  jobs.recordWriter(handle, { pid, startedAt, uid: process.geteuid(), dialect: `tag ${tag}` })
}

function takeSnapshot(handle) {
  jobs.recordSnapshots(handle, { vm: 'vm1', name, id, disks })
  fs.writeFileSync(path.join(snapshots, id), '')
}

/** What the caller's thread does after a job. */
function removeSnapshots() {
  const owed = jobs.owedSnapshots(directory)
  for (const { owner } of owed) fs.rmSync(path.join(snapshots, owner.id), { force: true })
  if (owed.length > 0)
    jobs.forgetSnapshots(
      directory,
      owed.map(({ owner }) => owner.id),
      false,
    )
}

/** As lib/store/stage.ts. */
function closeMemory(handle) {
  const { memory } = handle
  delete handle.memory
  if (memory === undefined) return
  native.unlock(memory.descriptor)
  native.close(memory.descriptor)
}

function scanner(handle, memoryBytes) {
  const scan = jobs.beginScan(handle, { name, memoryBytes, digest: true, sparsify: true, durable: true })
  const { chunkBytes } = scan
  const stop = new Int32Array(1)
  const bytes = sliceBytesFor(chunkBytes)
  const starts = Array.from({ length: Math.ceil(memoryBytes / bytes) }, (_, index) => index * bytes)
  const slices = starts.map((from) => ({ from, to: Math.min(from + bytes, memoryBytes), chunkBytes, stop }))
  return {
    run: (count) => slices.slice(0, count).forEach((slice) => jobs.scanSlice(handle, scan, slice)),
    end: () => jobs.endScan(handle, scan, stop),
  }
}

function scanAll(handle, memoryBytes) {
  pass.from = calls + 1
  const scan = scanner(handle, memoryBytes)
  scan.run(Infinity)
  const content = scan.end()
  pass.to = calls + 1
  closeMemory(handle)
  return content
}

function publish(handle, poweredOff, hasDisks = false) {
  const { problems, inspection, savedMs } = jobs.collectStage(handle, name)
  if (problems.length > 0) throw new Error(JSON.stringify(problems))
  if (poweredOff) jobs.flushStage(handle, name)
  const { memoryBytes, kernelBytes } = inspection.metadata
  const { modifiedMs, digests } = scanAll(handle, memoryBytes)
  const manifest = {
    version: hasDisks ? 2 : 1,
    id,
    vm: 'vm1',
    name,
    createdAt: new Date(poweredOff ? savedMs : Date.now()).toISOString(),
    dialect: `tag ${tag}`,
    poweredOff,
    pinned: false,
    memoryModifiedMs: modifiedMs,
    sizes: { memory: memoryBytes, kernel: kernelBytes },
    digests,
    ...(hasDisks && { disks }),
  }
  const publication = { name, manifest, ifExists: 'replace', durable: true }
  jobs.prepareStage(handle, publication)
  jobs.commitStage(handle, publication)
}

const operations = {
  create: () => publish(savedStage(false), false),
  createWithDisks() {
    const handle = savedStage(false)
    takeSnapshot(handle)
    publish(handle, false, true)
  },
  failWithDisks() {
    const handle = savedStage(false)
    takeSnapshot(handle)
    jobs.abandonStage(handle, [])
  },
  createInMemory: () => publish(savedInMemory(), false),
  failInMemory() {
    const handle = savedInMemory()
    const { inspection } = jobs.collectStage(handle, name)
    pass.from = calls + 1
    scanner(handle, inspection.metadata.memoryBytes).run(1)
    pass.to = calls + 1
    jobs.abandonStage(handle, [])
    closeMemory(handle)
  },
  suspend() {
    const handle = savedStage(true)
    // From here on these files are the VM's only state.
    fs.writeFileSync(strike.saved, '')
    publish(handle, true)
  },
  suspendWithDisks() {
    operations.suspend()
    const request = { directory, name, ifExists: 'replace', durable: true, writerUid: 0 }
    const made = jobs.createStage(request)
    const { directory: descriptor, stage } = made.descriptors
    const handle = { directoryPath: directory, directory: descriptor, stage, id: made.id }
    takeSnapshot(handle)
    jobs.addSnapshots(directory, 'vm1', name, id, disks)
    jobs.abandonStage(handle, [])
  },
  destroy: () => jobs.destroyCheckpoint(directory, name),
  destroyAll: () => jobs.destroyCheckpoints(directory, true),
  prune: () => jobs.pruneCheckpoints(directory, 'vm1', { keepLast: 1 }, { now: Date.now() }),
  pin: () => jobs.pinCheckpoint(directory, 'vm1', name, true),
  list: () => jobs.listCheckpoints(directory, 'vm1'),
}
// Defer removals as a thread of the pool does, but for files of any size.
beginDeferring(0)
try {
  operations[strike.op]()
  removeSnapshots()
  for (const removal of takeRemovals()) jobs.emptyRemoved(removal)
} catch (error) {
  if (error.code !== 'ERR_CHECKPOINT_NOT_FOUND') throw error
}
process.stdout.write(JSON.stringify({ calls, pass }))
