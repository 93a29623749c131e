/** What the steps of one create or suspend share. */
import type { System } from '../../bhyve/dialects.js'
import type { Target } from '../../bhyve/locate.js'
import type { Peer } from '../../bhyve/peer.js'
import type { PeerMemory } from '../../bhyve/peer_memory.js'
import type { Cancellation } from '../../base/cancellation.js'
import type { DiskReason, StageUsed } from '../../base/types.js'
import type { RecordedArguments } from '../../checkpoint/recorded_arguments.js'
import type { DiskProviders } from '../../disks/providers.js'
import type { Stage } from '../../store/stage.js'
import type { Store } from '../../store/store.js'
import type { VmJobs } from '../jobs.js'
import type { ProgressReporter } from '../progress.js'
import type { SaveSettings } from '../settings.js'
import type { SupervisorSettings } from '../supervisor/settings.js'

/** The target VM and the store of its checkpoints. */
export interface SavingContext {
  store: Store
  vmJobs: VmJobs
  target: Target
  system: System
  peers: PeerMemory
  disks: DiskProviders
  supervisors: SupervisorSettings
  /** `refused`: why bhyve cannot write there, as this call has found out. */
  memoryStage?: { directory: string; maxBytes: number | undefined; refused?: DiskReason } | undefined
  /** How long to wait for the process of a suspended VM to exit, in milliseconds. */
  exitTimeoutMs: number
}

/** What the steps of one save share, once it has a stage. */
export interface Saving {
  context: SavingContext
  settings: SaveSettings
  call: SavingCall
  stage: Stage
}

export interface SavingCall {
  /** Where bhyve writes. Undefined if the client has no memory stage. */
  stageUsed?: StageUsed | undefined
  /** The arguments to record in the manifest. */
  recorded?: RecordedArguments | undefined
  cancellation: Cancellation
  progress: ProgressReporter
  /** The process that received the request. Errors report the state of its VM. */
  receiver: {
    peer?: Peer
    /** The process waits for this library: it has not received the request yet, or the guard has stopped it. */
    waitsForUs?: boolean
  }
}
