/** Creates stages as a manager process leaves them, with the jobs of the store. */
import fs from 'node:fs'
import path from 'node:path'
import { type Test } from 'tap'
import { type ListedCheckpoint } from 'bhyve-checkpoint'
import { loadNative } from '../../dist/base/native.js'
import { jobs } from '../../dist/worker/jobs.js'
import { scratch } from './index.js'
import { memoryBytes, putSet } from './sets.js'

const native = loadNative()
const ours = process.geteuid!()
/** A process that does not exist. No system assigns this pid. */
export const nobody = { pid: 2 ** 30, startedAt: '1', uid: ours, dialect: 'descriptor' }

type Handle = Parameters<typeof jobs.flushStage>[0]

interface StageOptions {
  poweroff?: boolean
  writer?: typeof nobody
  name?: string
}

/** A stage with a complete checkpoint in its inbox, as bhyve leaves it. Its locks are held until `release()`. */
export class MadeStage {
  readonly handle: Handle
  readonly path: string
  readonly #descriptors: number[]

  constructor(directory: string, { poweroff = true, writer = nobody, name = 'suspend' }: StageOptions = {}) {
    const intent = { vm: 'vm1', name, ifExists: 'replace', poweroff } as const
    const request = { directory, name, ifExists: 'replace', durable: true, writerUid: ours, intent } as const
    const made = jobs.createStage({ ...request, memoryBytes: undefined })
    const { directory: descriptor, stage } = made.descriptors
    this.handle = { directoryPath: directory, directory: descriptor, stage, id: made.id }
    this.#descriptors = Object.values(made.descriptors)
    this.path = path.join(directory, '.staging', made.id)
    jobs.recordWriter(this.handle, writer)
    const inbox = path.join(this.path, 'in')
    putSet(inbox, 'x', { manifest: false })
    fs.writeFileSync(path.join(inbox, 'x.ckp'), ram)
    const kernelBytes = fs.statSync(path.join(inbox, 'x.ckp.kern')).size
    fs.writeFileSync(path.join(inbox, 'x.ckp.kern'), Buffer.alloc(kernelBytes, 'kernel and devices; '))
    for (const ending of ['', '.kern', '.meta'])
      fs.renameSync(path.join(inbox, `x.ckp${ending}`), path.join(inbox, `ckp${ending}`))
  }

  file(name: string): string {
    return path.join(this.path, name)
  }

  /** Simulates the death of the manager process. */
  release(): void {
    for (const descriptor of this.#descriptors) native.close(descriptor)
  }

  /** Simulates the death of the manager process and a reboot of the host. */
  reboot(): void {
    this.release()
    const intent = this.file(fs.existsSync(this.file('live')) ? 'live' : 'intent')
    const text = fs.readFileSync(intent, 'utf8')
    fs.writeFileSync(intent, JSON.stringify({ ...(JSON.parse(text) as object), boot: 'another' }))
  }

  /** Runs the jobs up to the manifest with digests. Calls `meanwhile` before the scan. */
  prepare(meanwhile?: () => void): void {
    const { handle } = this
    const { inspection, savedMs } = jobs.collectStage(handle, 'suspend')
    meanwhile?.()
    const request = { name: 'suspend', memoryBytes, digest: true, sparsify: true, durable: true }
    const content = jobs.scanAtOnce(handle, request, new Int32Array(1))!
    const manifest = {
      ...{ version: 1, id: 'an-id', vm: 'vm1', name: 'suspend', createdAt: new Date(savedMs).toISOString() },
      ...{ poweredOff: true, pinned: false, memoryModifiedMs: content.modifiedMs },
      sizes: { memory: memoryBytes, kernel: inspection!.metadata!.kernelBytes },
      digests: content.digests!,
    }
    jobs.prepareStage(handle, { name: 'suspend', ifExists: 'replace', durable: true, manifest })
  }
}

export const ram = Buffer.alloc(memoryBytes, 'what the guest had in its memory; ')

export function store(t: Test): string {
  const directory = path.join(scratch(t), 'vm1')
  fs.mkdirSync(directory)
  return directory
}

export function list(directory: string): ListedCheckpoint[] {
  return jobs.listCheckpoints(directory, 'vm1')
}

export function assertRam(t: Test, directory: string, name: string): void {
  t.ok(fs.readFileSync(path.join(directory, `${name}.ckp`)).equals(ram), `the RAM of ${name}`)
}
