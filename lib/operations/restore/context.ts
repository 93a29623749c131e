/** What every restore of one call shares. */
import type { Cancellation } from '../../base/cancellation.js'
import type { System } from '../../bhyve/dialects.js'
import type { Target } from '../../bhyve/locate.js'
import type { PeerMemory } from '../../bhyve/peer_memory.js'
import type { Host } from '../../checkpoint/host.js'
import type { DiskProviders } from '../../disks/providers.js'
import type { Store } from '../../store/store.js'
import type { VmJobs } from '../jobs.js'

export interface RestoreContext {
  store: Store
  vmJobs: VmJobs
  disks: DiskProviders
  /** The target of the VM that is started: the one that the caller named, or the new one of a fork. */
  target: Target
  peers: PeerMemory
  /** bhyve's run directory if the arguments name none. */
  defaultRunDirectory: string
  host: () => Host
  system: System
  cancellation: Cancellation
}
