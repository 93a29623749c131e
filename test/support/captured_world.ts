/** A VM, a client with a disk provider for tests, and what is on disk. */
import fs from 'node:fs'
import path from 'node:path'
import type { Test } from 'tap'
import { createClient, type CheckpointClient } from 'bhyve-checkpoint'
import type { SimulatedBhyve, SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { copyingProvider, type CopyingProvider } from './copying_provider.js'
import { start } from './creating.js'
import { scratch, tree } from './index.js'

const MiB = 1024 * 1024
/** A guest that takes long to save: the guard cannot miss it. */
const slow: Partial<SimulatorOptions> = { memoryBytes: 4 * MiB, writeRate: 16 * MiB }

export interface World {
  bhyve: SimulatedBhyve
  root: string
  directory: string
  disk: string
  provider: CopyingProvider
  client: CheckpointClient
  create: (name?: string) => ReturnType<CheckpointClient['createCheckpoint']>
}

export async function world(t: Test, options: Partial<SimulatorOptions> = slow): Promise<World> {
  const bhyve = await start(t, options)
  const root = scratch(t)
  const disk = path.join(root, 'disk.img')
  fs.writeFileSync(disk, 'first')
  const provider = copyingProvider(disk, path.join(root, 'snapshots'))
  const checkpointDirectory = path.join(root, 'checkpoints')
  const { runDirectory } = bhyve
  const client = createClient({ runDirectory, checkpointDirectory, diskProviders: [provider] })
  const create = (name = 'a') => client.createCheckpoint('vm1', { name, disks: [provider.selection] })
  return { bhyve, root, directory: path.join(checkpointDirectory, 'vm1'), disk, provider, client, create }
}

export const manifestIn = (
  directory: string,
  name: string,
): { id: string; version: number; disks: unknown } =>
  JSON.parse(fs.readFileSync(path.join(directory, `${name}.ckp.manifest`), 'utf8')) as ReturnType<
    typeof manifestIn
  >

export const recordsIn = (directory: string): string[] =>
  tree(directory).filter((name) => name.endsWith('.snapshots'))
