/** The rest of the world as this library sees it. */
import os from 'node:os'
import type { System } from '../bhyve/dialects.js'
import { type PeerMemory, sharedPeers } from '../bhyve/peer_memory.js'
import { connectionsHeld } from '../bhyve/request.js'
import { type Host, hostNow } from '../checkpoint/host.js'
import { type JobRunner, sharedPool } from '../pool/pool.js'
import { DescriptorBudget, systemCounts } from './descriptor_budget.js'
import { type Runtime, thisRuntime } from './runtime.js'

/** What tests replace. */
export interface Surroundings {
  /** Where a bhyve puts its socket that is told nothing else. */
  defaultRunDirectory: string
  /** Where what blocks is done. */
  pool: () => JobRunner
  /** What the calls may open. */
  descriptors: () => DescriptorBudget
  /** Where the kernel shows the VMs it has. */
  vmmDirectory: string
  system: System
  /** Other than Node, some cannot do everything. */
  runtime: Runtime
  peers: PeerMemory
  /** How long a suspended VM's process may take to be gone, in milliseconds. */
  exitPatienceMs: number
  /** What a checkpoint's own record is compared with. */
  host: () => Host
}

let budget: DescriptorBudget | undefined

/** One for all clients of this environment: the limit is the process's. */
function sharedBudget(): DescriptorBudget {
  budget ??= new DescriptorBudget(systemCounts(() => sharedPool().descriptorsToCome, connectionsHeld))
  return budget
}

export const realSurroundings: Surroundings = {
  defaultRunDirectory: '/var/run/bhyve',
  pool: sharedPool,
  descriptors: sharedBudget,
  vmmDirectory: '/dev/vmm',
  peers: sharedPeers,
  // Giving back hundreds of gigabytes takes a while.
  exitPatienceMs: 120_000,
  system: { platform: process.platform, release: os.release() },
  runtime: thisRuntime,
  host: hostNow,
}
