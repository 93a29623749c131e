/** Tests of the ledger of the memory stage, and of what dead processes leave in it. */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import t, { type Test } from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { loadNative } from '../../../dist/base/native.js'
import { jobs } from '../../../dist/worker/jobs.js'
import { mounted } from '../../support/image_world.js'
import { scratch, tree } from '../../support/index.js'
import { MadeStage, nobody } from '../../support/stages.js'

const MiB = 1024 * 1024
const tmpfs = mounted(t, 'tmpfs', 2 ** 40)
const needsTmpfs = { skip: tmpfs.skip }
const native = loadNative()

type Admission = ReturnType<typeof jobs.enterMemory>

/** Stages of one store that are in one memory stage. */
class Ledger {
  readonly directory: string
  readonly store: string
  readonly #descriptors = new Set<number>()

  constructor(t: Test) {
    this.store = scratch(t)
    this.directory = path.join(tmpfs.directory, path.basename(this.store))
    t.teardown(() => [...this.#descriptors].forEach((descriptor) => this.#close(descriptor)))
  }

  stage(vm = 'vm1', writer = nobody): MadeStage {
    return new MadeStage(path.join(this.store, vm), { poweroff: false, name: 'live', writer })
  }

  enter({ handle }: MadeStage, memoryBytes: number, maxBytes?: number): Admission {
    const writerUid = process.geteuid!()
    const admission = jobs.enterMemory(handle, {
      directory: this.directory,
      maxBytes,
      memoryBytes,
      writerUid,
    })
    if (admission.kind === 'admitted') {
      const { memory, in: inbox } = admission.descriptors
      native.close(inbox)
      handle.memory = { descriptor: memory, path: admission.path }
      this.#descriptors.add(memory)
    }
    return admission
  }

  #close(descriptor: number): void {
    if (this.#descriptors.delete(descriptor)) native.close(descriptor)
  }

  /** Simulates the death of the owner. */
  release(stage: MadeStage): void {
    this.#close(stage.handle.memory!.descriptor)
    stage.release()
  }
}

/** Moves what bhyve wrote into the memory stage. */
function write(stage: MadeStage, { kind, ...admission }: Admission): void {
  if (kind !== 'admitted') throw new Error(kind)
  const inbox = path.join((admission as { path: string }).path, 'in')
  for (const file of fs.readdirSync(stage.file('in')))
    fs.copyFileSync(path.join(stage.file('in'), file), path.join(inbox, file))
  for (const file of fs.readdirSync(stage.file('in'))) fs.rmSync(path.join(stage.file('in'), file))
}

t.test('memory stage: the RAM of all stages is counted', needsTmpfs, (t) => {
  const ledger = new Ledger(t)
  const [first, second, third] = [ledger.stage(), ledger.stage('vm2'), ledger.stage('vm3')]
  t.match(ledger.enter(first, 6 * MiB, 10 * MiB), { kind: 'admitted' })
  t.match(ledger.enter(second, 5 * MiB, 10 * MiB), { kind: 'refused', reason: 'memory-stage-full', left: [] })
  t.match(ledger.enter(third, 4 * MiB, 10 * MiB), { kind: 'admitted' })
  jobs.abandonStage(first.handle, [])
  t.match(ledger.enter(second, 5 * MiB, 10 * MiB), { kind: 'admitted' }, 'there is room again')
  jobs.abandonStage(second.handle, [])
  jobs.abandonStage(third.handle, [])
  t.strictSame(tree(ledger.directory), [])
  t.end()
})

t.test('memory stage: the host keeps memory, also from what others are about to write', needsTmpfs, (t) => {
  const ledger = new Ledger(t)
  const [first, second] = [ledger.stage(), ledger.stage('vm2')]
  const reserve = Math.max(1024 ** 3, os.totalmem() / 10)
  const free = os.freemem() - reserve
  t.match(ledger.enter(first, Math.ceil(free * 1.2)), { kind: 'refused', reason: 'host-memory' })
  t.match(ledger.enter(first, Math.floor(free * 0.6)), { kind: 'admitted' })
  t.match(ledger.enter(second, Math.floor(free * 0.6)), { kind: 'refused', reason: 'host-memory' })
  jobs.abandonStage(first.handle, [])
  t.match(ledger.enter(second, Math.floor(free * 0.6)), { kind: 'admitted' })
  jobs.abandonStage(second.handle, [])
  t.end()
})

t.test('memory stage: the tmpfs itself can be too small', { skip: tmpfs.skip }, (t) => {
  const small = mounted(t, 'tmpfs', 8 * MiB)
  const ledger = new Ledger(t)
  const stage = ledger.stage()
  const request = { directory: path.join(small.directory, 'm'), maxBytes: undefined, writerUid: 0 }
  const enter = (memoryBytes: number): unknown => jobs.enterMemory(stage.handle, { ...request, memoryBytes })
  t.match(enter(8 * MiB), { kind: 'refused', reason: 'memory-stage-full' })
  t.end()
})

t.test('memory stage: another process that holds the ledger', needsTmpfs, (t) => {
  const ledger = new Ledger(t)
  const stage = ledger.stage()
  fs.mkdirSync(ledger.directory, { mode: 0o700 })
  const descriptor = native.openPath(ledger.directory, fs.constants.O_DIRECTORY) as number
  native.lock(descriptor, 'exclusive')
  t.throws(() => ledger.enter(stage, MiB), { code: 'ERR_CHECKPOINT_BUSY' })
  native.close(descriptor)
  t.match(ledger.enter(stage, MiB), { kind: 'admitted' })
  t.end()
})

t.test('memory stage: what a dead process left without a stage is removed', needsTmpfs, (t) => {
  const ledger = new Ledger(t)
  const [first, second] = [ledger.stage(), ledger.stage('vm2')]
  write(first, ledger.enter(first, 9 * MiB, 10 * MiB))
  ledger.release(first)
  fs.rmSync(path.join(ledger.store, 'vm1'), { recursive: true })
  t.match(ledger.enter(second, 9 * MiB, 10 * MiB), { kind: 'admitted' })
  t.equal(fs.readdirSync(ledger.directory).length, 1)
  t.end()
})

t.test('memory stage: entries that a process left while it made them block no other', needsTmpfs, (t) => {
  const ledger = new Ledger(t)
  const records = [
    '',
    '/',
    'relative/.staging/x',
    '/cut/.stag',
    '/dev/null/.staging/x',
    `/${'x'.repeat(300)}/.staging/x`,
  ]
  for (const [index, record] of records.entries()) {
    const entry = path.join(ledger.directory, `left${index}`)
    fs.mkdirSync(path.join(entry, 'in'), { recursive: true })
    fs.writeFileSync(path.join(entry, 'size'), index % 2 === 0 ? '' : '1')
    fs.writeFileSync(path.join(entry, 'stage'), record)
  }
  fs.chmodSync(ledger.directory, 0o700)
  const stage = ledger.stage()
  t.match(ledger.enter(stage, MiB), { kind: 'admitted' })
  const undecided = fs.readdirSync(ledger.directory).filter((entry) => entry.startsWith('left'))
  t.strictSame(undecided, ['left4', 'left5'], 'a path that cannot be opened may be that of a stage')
  t.end()
})

t.test(
  'memory stage: a complete checkpoint of a dead process is kept if bhyve has ended',
  needsTmpfs,
  async (t) => {
    const ledger = new Ledger(t)
    const stage = ledger.stage()
    write(stage, ledger.enter(stage, 9 * MiB, 10 * MiB))
    ledger.release(stage)
    const other = ledger.stage('vm2')
    t.match(ledger.enter(other, 9 * MiB, 10 * MiB), {
      ...{ kind: 'refused', reason: 'memory-stage-full' },
      left: [path.join(ledger.store, 'vm1')],
    })
    jobs.recoverDirectory(path.join(ledger.store, 'vm1'))
    t.match(ledger.enter(other, 9 * MiB, 10 * MiB), { kind: 'admitted' })
    const client = createClient({ checkpointDirectory: ledger.store })
    const [kept] = await client.listCheckpoints('vm1')
    t.match(kept, { state: 'complete', name: /^live-[0-9a-z]+$/ })
    t.match(await client.verifyCheckpoint('vm1', kept!.name, { depth: 'content' }), { ok: true })
  },
)

t.test('memory stage: an incomplete checkpoint of a dead process is removed', needsTmpfs, (t) => {
  const ledger = new Ledger(t)
  const stage = ledger.stage()
  const admission = ledger.enter(stage, 9 * MiB)
  write(stage, admission)
  if (admission.kind === 'admitted') fs.truncateSync(path.join(admission.path, 'in/ckp.meta'), 10)
  ledger.release(stage)
  t.strictSame(jobs.listCheckpoints(path.join(ledger.store, 'vm1'), 'vm1'), [])
  t.strictSame(tree(ledger.directory), [])
  t.end()
})

t.test('memory stage: another directory under the recorded path is not touched', needsTmpfs, (t) => {
  const ledger = new Ledger(t)
  const stage = ledger.stage()
  const admission = ledger.enter(stage, 9 * MiB)
  if (admission.kind !== 'admitted') throw new Error(admission.kind)
  write(stage, admission)
  ledger.release(stage)
  fs.renameSync(admission.path, path.join(ledger.directory, 'elsewhere'))
  fs.mkdirSync(admission.path)
  fs.writeFileSync(path.join(admission.path, 'somebody'), "else's")
  t.strictSame(jobs.listCheckpoints(path.join(ledger.store, 'vm1'), 'vm1'), [])
  t.ok(fs.existsSync(path.join(admission.path, 'somebody')))
  t.end()
})
