/** What the two hosts of a move share. */
import os from 'node:os'
import type { Cancellation } from '../../base/cancellation.js'
import type { Checkpoint } from '../../base/types.js'
import { hostFacts } from '../../checkpoint/host.js'
import { type Manifest, versionFor } from '../../checkpoint/manifest.js'
import type { MoveRecord } from '../../checkpoint/move_record.js'
import type { Store } from '../../store/store.js'
import { ProgressReporter } from '../progress.js'

/** A checkpoint as a stream. */
export interface MoveArchive {
  /** The stream has no move record. */
  export(vm: string, name: string): AsyncIterable<Uint8Array>
  /** Publishes the checkpoint with this move record and with the arguments in the stream. */
  import(
    vm: string,
    name: string,
    source: AsyncIterable<Uint8Array>,
    arriving: MoveRecord,
  ): Promise<Checkpoint>
}

/** The archive of `exportCheckpoint`. The other host is trusted with the arguments: it is authenticated, and bhyve's caller. */
export function archiveOf(store: Store, cancellation: Cancellation): MoveArchive {
  const progressOf = (vm: string, name: string): ProgressReporter =>
    new ProgressReporter({ vm, name, onProgress: undefined, memoryBytes: undefined }, cancellation)
  return {
    async *export(vm, name) {
      const { exportArchive } = await import('../export.js')
      yield* exportArchive({ store, vm, name, copy: true, cancellation, progress: progressOf(vm, name) })
    },
    async import(vm, name, source, move) {
      const { importArchive } = await import('../import.js')
      const changeManifest = (manifest: Manifest): Manifest => withOwnMove(manifest, move)
      const call = { store, cancellation, progress: (to: string) => progressOf(vm, to), changeManifest }
      return importArchive(call, { vm, name, ifExists: 'fail', durable: true, keepArguments: true }, source)
    },
  }
}

/** A pin belongs to the name, on the host where it was set. */
function withOwnMove(manifest: Manifest, move: MoveRecord): Manifest {
  const moving = { ...manifest, move, pinned: false }
  return { ...moving, version: versionFor(moving) }
}

export function now(): string {
  return new Date().toISOString()
}

/** The name of this host in the records and messages of the other host. */
export function thisHost(): string {
  return hostFacts().name ?? os.hostname()
}

/** Identifies the store that a VM comes from. A copied store on another host is another one. */
export function originOf(storeId: string): string {
  return `${thisHost()}:${storeId}`
}

export interface SendSettings {
  vm: string
  host: string
  dryRun: boolean
  anyCpu: boolean
  disks: 'shared' | 'send'
  silenceMs: number
}

/** The disks are those of the suspend, so the snapshots are not needed. */
export function restoreCommand({ vm, disks }: SendSettings, checkpoint: string): string {
  return `bhyve-checkpoint restore ${vm} ${checkpoint}${disks === 'send' ? ' --disks keep' : ''}`
}
