/** A memory stage with the stages of one store in it. */
import fs from 'node:fs'
import path from 'node:path'
import type { Test } from 'tap'
import { loadNative } from '../../dist/base/native.js'
import { jobs } from '../../dist/worker/jobs.js'
import { scratch } from './index.js'
import { MadeStage, nobody } from './stages.js'

const native = loadNative()

export type Admission = ReturnType<typeof jobs.enterMemory>

/** Stages of one store that are in one memory stage. */
export class Ledger {
  readonly directory: string
  readonly entries: string
  readonly store: string
  readonly #descriptors = new Set<number>()

  /** `tmpfs`: the directory of one. */
  constructor(t: Test, tmpfs: string) {
    this.store = scratch(t)
    this.directory = path.join(tmpfs, path.basename(this.store))
    this.entries = path.join(this.directory, '.memory-stage')
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
export function write(stage: MadeStage, { kind, ...admission }: Admission): void {
  if (kind !== 'admitted') throw new Error(kind)
  const inbox = path.join((admission as { path: string }).path, 'in')
  for (const file of fs.readdirSync(stage.file('in')))
    fs.copyFileSync(path.join(stage.file('in'), file), path.join(inbox, file))
  for (const file of fs.readdirSync(stage.file('in'))) fs.rmSync(path.join(stage.file('in'), file))
}
