/** A VM with two disks and a checkpoint that has snapshots of them. */
import fs from 'node:fs'
import path from 'node:path'
import { type Test } from 'tap'
import type { CheckpointClient, DiskOwner, DiskProvider } from 'bhyve-checkpoint'
// @ts-expect-error: a plain module, shared with programs that are not TypeScript
import { callsIn as anyCallsIn, copyingDisks as anyCopyingDisks } from './copying_disks.mjs'
import { World } from './restore_world.js'
import { changeManifest } from './sets.js'

export interface ProviderCall {
  call: string
  id?: string
  as?: string
  owner?: DiskOwner
  paths?: string[]
}

export interface CopyingOptions {
  kind?: string
  /** Methods that the provider does not have. */
  without?: readonly string[]
  /** The message with which a method rejects. */
  fail?: Readonly<Record<string, string>>
  onCall?: (call: string) => unknown
}

export const copyingDisks = anyCopyingDisks as (log: string, options?: CopyingOptions) => DiskProvider

export class DiskWorld extends World {
  /** `a.img` and `b.img`. */
  readonly images: string[]
  readonly log: string

  constructor(t: Test) {
    super(t)
    this.log = path.join(this.root, 'calls')
    this.images = ['a', 'b'].map((name) => path.join(this.root, `${name}.img`))
    for (const image of this.images) fs.writeFileSync(image, 'then')
    const [a = '', b = ''] = this.images
    this.args.splice(
      this.args.indexOf('3,virtio-blk,/d'),
      1,
      `3,virtio-blk,${a}`,
      '-s',
      `4,virtio-blk,${b},nocache`,
    )
  }

  /** Saves the VM as `name` with one record for each disk, kills it, and changes its disks. */
  async savedWithDisks(name = 'a'): Promise<void> {
    await this.saved(name)
    this.addSnapshots(name)
    for (const image of this.images) fs.writeFileSync(image, 'now')
  }

  addSnapshots(name: string, more: Record<string, unknown> = {}): void {
    const disks = this.images.map((image) => {
      const snapshot = `${image}@${name}`
      fs.copyFileSync(image, snapshot)
      return { kind: 'copy', disks: [{ path: image, snapshot }], ...more }
    })
    changeManifest(this.directory, name, { version: 2, disks })
  }

  with(options: CopyingOptions = {}): CheckpointClient {
    return this.newClient({ diskProviders: [copyingDisks(this.log, options)] })
  }

  calls(): ProviderCall[] {
    return (anyCallsIn as (log: string) => ProviderCall[])(this.log)
  }

  contents(): string[] {
    return this.images.map((image) => fs.readFileSync(image, 'utf8'))
  }

  /** The command line of a process. */
  commandOf(pid: number): string[] {
    return fs.readFileSync(`/proc/${String(pid)}/cmdline`, 'utf8').split('\0')
  }

  get rollbackRecord(): string {
    return path.join(this.directory, '.staging/disks.rollback')
  }
}
