import type { ProcessEnd } from '../../bhyve/process_end.js'
import type { Checkpoint } from '../../base/types.js'
import type { Supervision } from '../supervisor/supervision.js'
import type { Saving } from './call.js'

/** What the steps of one suspend share. */
export interface Suspending extends Saving {
  supervision: Supervision
  /** The end of the process that received the request. */
  end?: ProcessEnd
  /** Undefined if no disks are to be captured. */
  disks?: DisksOfSuspend
}

/** The disks of a suspend, until they are captured. `suspended_disks.ts` implements it. */
export interface DisksOfSuspend {
  /** The id of the checkpoint. */
  readonly id: string
  /** Call this when the state is published and bhyve has ended. Resolves with the checkpoint and its disks. */
  capture(checkpoint: Checkpoint): Promise<Checkpoint>
  close(): Promise<void>
}
