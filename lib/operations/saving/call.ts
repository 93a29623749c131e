/** What a call that saves a VM has from its beginning to its end. */
import type { System } from '../../bhyve/dialects.js'
import type { Place } from '../../bhyve/locate.js'
import type { Peer } from '../../bhyve/peer.js'
import type { PeerMemory } from '../../bhyve/peer_memory.js'
import type { Cancellation } from '../../base/cancellation.js'
import type { Store } from '../../store/store.js'
import type { VmJobs } from '../jobs.js'
import type { ProgressReporter } from '../progress.js'

/** Where the VM is, and where its checkpoints go. */
export interface SavingContext {
  store: Store
  vmJobs: VmJobs
  place: Place
  system: System
  peers: PeerMemory
  /** How long a suspended VM's process may take to be gone, in milliseconds. */
  exitPatienceMs: number
}

export interface SavingCall {
  cancellation: Cancellation
  progress: ProgressReporter
  /** The process that was asked, from then on: an error tells what has become of its VM. */
  asked: { peer?: Peer }
}
