/** What a save does about a frozen guest. Most saves do nothing; `freeze.ts` is loaded only by those that do. */
import type { DiskRecord } from '../../base/disk_types.js'
import type { Stage } from '../../store/stage.js'
import type { Writer } from '../../store/staging/intent.js'

/** Facts for the manifest. */
export interface FrozenFacts {
  id?: string
  /** From the first byte of RAM to the end of bhyve's work, in milliseconds. */
  frozenMs?: number
  disks?: readonly DiskRecord[]
}

export interface Freeze {
  /** Call this before anything is sent. If it rejects, the disks cannot be captured. */
  prepare(stage: Stage): Promise<void>
  /** Call this before the first byte of the request is sent. If it rejects, nothing may be sent. */
  open(stage: Stage, writer: Writer, connection: number): Promise<void>
  /** Call this right before the first byte is sent. */
  sending(): void
  /** Call this once bhyve has closed the connection (`isAnswered`), and when the request has failed. */
  conclude(stage: Stage, isAnswered: boolean): Promise<void>
  /** Call this once bhyve is known to have saved the VM. Rejects if the freeze was not used. */
  facts(): Promise<FrozenFacts>
}

export const noFreeze: Freeze = {
  prepare: () => Promise.resolve(),
  open: () => Promise.resolve(),
  sending: () => undefined,
  conclude: () => Promise.resolve(),
  facts: () => Promise.resolve({}),
}
