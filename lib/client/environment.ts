/** The environment of a client: platform, threads, limits. Tests inject their own. */
import os from 'node:os'
import type { System } from '../bhyve/dialects.js'
import { type PeerMemory, sharedPeers } from '../bhyve/peer_memory.js'
import { connectionsHeld } from '../bhyve/request.js'
import { type Host, hostNow } from '../checkpoint/host.js'
import { type HostFacts, hostFactsOf } from '../diagnosis/host_facts.js'
import { type JobRunner, sharedPool } from '../pool/pool.js'
import { DescriptorBudget, systemCounts } from './descriptor_budget.js'
import { type Runtime, thisRuntime } from './runtime.js'

export interface Environment {
  /** bhyve's default directory for its sockets. */
  defaultRunDirectory: string
  /** Runs blocking work. */
  pool: () => JobRunner
  /** Limits how many descriptors the calls may open. */
  descriptors: () => DescriptorBudget
  /** Directory in which the kernel lists its VMs. */
  vmmDirectory: string
  /** The program `vm` of vm-bhyve. */
  vmBhyveProgram: string
  /** The directory in which libvirt records the processes of its VMs. */
  libvirtDirectory: string
  system: System
  /** Runtimes other than Node do not support every call. */
  runtime: Runtime
  peers: PeerMemory
  /** How long to wait for the process of a suspended VM to exit, in milliseconds. */
  exitTimeoutMs: number
  /** Returns facts about this host. A restore plan compares them with those in the manifest. */
  host: () => Host
  /** What programs and the kernel of this host report. A diagnosis uses it. */
  facts: HostFacts
}

let budget: DescriptorBudget | undefined

/** All clients share one budget, because the limit applies to the process. */
function sharedBudget(): DescriptorBudget {
  budget ??= new DescriptorBudget(systemCounts(() => sharedPool().descriptorsToCome, connectionsHeld))
  return budget
}

export const hostEnvironment: Environment = {
  defaultRunDirectory: '/var/run/bhyve',
  pool: sharedPool,
  descriptors: sharedBudget,
  vmmDirectory: '/dev/vmm',
  vmBhyveProgram: '/usr/local/sbin/vm',
  libvirtDirectory: '/var/run/libvirt/bhyve',
  peers: sharedPeers,
  // The kernel takes a while to free hundreds of gigabytes of RAM.
  exitTimeoutMs: 120_000,
  system: { platform: process.platform, release: os.release() },
  runtime: thisRuntime,
  host: hostNow,
  facts: hostFactsOf(process.platform),
}
