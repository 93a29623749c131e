// Does one operation on a store and is killed before or after its n-th system call. Runs the store's own code on its
// main thread, so that the numbers of the calls are the same in every run.
import { randomUUID } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { loadNative } from '../../dist/base/native.js'
import { jobs } from '../../dist/worker/jobs.js'
import { beginDeferring, takeRemovals } from '../../dist/store/staging/removed.js'
import { writeSet } from './sets.mjs'

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
  'close',
  'punchHole',
  'setModifiedAt',
]
for (const name of watched) struck(native, name)
struck(fs, 'writeSync')
struck(fs, 'readSync')

const { directory, name, tag } = strike
/** A disk snapshot is a file in this directory, named after the checkpoint's id. */
const snapshots = path.join(path.dirname(directory), 'snapshots')
const id = randomUUID()
const disks = [{ kind: 'file', disks: [{ path: '/disk', snapshot: path.join(snapshots, id) }] }]
/**
 * A stage with checkpoint files, as bhyve leaves it. This process is also the recorded bhyve, which dies with its
 * manager.
 */
function savedStage(poweroff) {
  const intent = { vm: 'vm1', name, ifExists: 'replace', poweroff }
  const request = {
    directory,
    name,
    ifExists: 'replace',
    durable: true,
    writerUid: process.geteuid(),
    intent,
  }
  const made = jobs.createStage(request)
  const { directory: descriptor, stage } = made.descriptors
  const handle = { directoryPath: directory, directory: descriptor, stage, id: made.id }
  const { startedAt } = native.processStatus(process.pid)
  jobs.recordWriter(handle, {
    pid: process.pid,
    startedAt,
    uid: process.geteuid(),
    dialect: `tag ${tag}`,
  })
  writeSet(path.join(path.dirname(made.requestPath), 'ckp'), tag)
  return handle
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

function publish(handle, poweredOff, hasDisks = false) {
  const { problems, inspection, savedMs } = jobs.collectStage(handle, name)
  if (problems.length > 0) throw new Error(JSON.stringify(problems))
  if (poweredOff) jobs.flushStage(handle, name)
  const { memoryBytes, kernelBytes } = inspection.metadata
  const pass = jobs.beginScan(handle, { name, memoryBytes, digest: true, sparsify: true })
  const stop = new Int32Array(1)
  jobs.scanSlice(handle, pass, { from: 0, to: memoryBytes, chunkBytes: pass.chunkBytes, stop })
  const { modifiedMs, digests } = jobs.endScan(handle, pass, stop)
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
process.stdout.write(String(calls))
