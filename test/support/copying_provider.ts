/** A disk provider for tests: a snapshot is a copy of the disk in a directory of its own. Every step can be replaced. */
import fs from 'node:fs'
import path from 'node:path'
import type { DiskOwner, DiskProvider, DiskRecord, DiskRequest, DiskSelection } from 'bhyve-checkpoint'

export interface CopyingProvider extends DiskProvider {
  /** What was called, with the id of the checkpoint. */
  readonly calls: string[]
  readonly selection: DiskSelection
  /** The ids of the checkpoints that have a snapshot. */
  ids(): string[]
  contentOf(id: string): string
  /** Set these to replace a step. */
  instead: {
    prepare?: (request: DiskRequest) => Promise<void>
    take?: (request: DiskRequest, signal: AbortSignal, copy: () => void) => Promise<void>
    finish?: () => Promise<void>
    remove?: (owner: DiskOwner) => Promise<void>
    storedBytes?: (owner: DiskOwner) => number
  }
}

export function copyingProvider(disk: string, directory: string): CopyingProvider {
  const calls: string[] = []
  const copyOf = (id: string): string => path.join(directory, id)
  fs.mkdirSync(directory, { recursive: true })
  const provider: CopyingProvider = {
    kind: 'copying',
    calls,
    instead: {},
    selection: { kind: 'copying' },
    ids: () => fs.readdirSync(directory).sort(),
    contentOf: (id) => fs.readFileSync(copyOf(id), 'utf8'),
    prepare: async (request) => {
      const { id } = request
      calls.push('prepare')
      await provider.instead.prepare?.(request)
      const planned: DiskRecord = { kind: 'copying', disks: [{ path: disk, snapshot: copyOf(id) }] }
      const copy = (): void => fs.copyFileSync(disk, copyOf(id))
      return {
        planned,
        take: async (signal) => {
          calls.push('take')
          if (provider.instead.take === undefined) copy()
          else await provider.instead.take(request, signal, copy)
          return { ...planned, taken: true }
        },
        finish: async (record) => {
          calls.push('finish')
          await provider.instead.finish?.()
          return { ...record, finished: true }
        },
      }
    },
    remove: async (record, owner) => {
      calls.push('remove')
      await provider.instead.remove?.(owner)
      for (const { snapshot } of record.disks) fs.rmSync(snapshot, { force: true })
    },
    missing: (record) =>
      Promise.resolve(record.disks.map(({ snapshot }) => snapshot).filter((one) => !fs.existsSync(one))),
    storedBytes: (_record, owner) => Promise.resolve(provider.instead.storedBytes?.(owner) ?? 0),
  }
  return provider
}
