/** The move to another host that a checkpoint is part of. */

/**
 * Where a copy of a suspended state stands in a move.
 *
 * - `arriving`: on the host that receives the VM. The state is complete, but the other host has not released it
 * - `released`: on the host that receives the VM. The VM may run here
 * - `not-started`: on the host that receives the VM. The VM did not start here and never will from this copy
 * - `moved-to`: on the host that sends the VM. The other host may run it, but has not reported that it does
 * - `moved`: on the host that sends the VM. The other host has started it
 *
 * `arriving` and `moved-to` are in doubt: whether the VM is to run here is known only to both hosts together.
 */
export type MoveState = 'arriving' | 'released' | 'not-started' | 'moved-to' | 'moved'

/** The move that a checkpoint is part of. */
export interface CheckpointMove {
  state: MoveState
  /** The other host: as its own name if it sends the VM, and as the caller named it if it receives the VM. */
  host: string
  /** The id of the move. Both hosts record it. */
  id: string
}
