/**
 * The record of a move in a manifest. It decides on which host a suspended VM can be made to run. docs/move.md explains
 * the states.
 */
import type { MoveState } from '../base/move_state.js'
import { isUuid } from '../base/names.js'
import { membersOf } from '../base/union_members.js'

/** `move` of a manifest. */
export interface MoveRecord {
  state: MoveState
  /** A UUID. Each attempt to move a VM has its own. */
  id: string
  /** The other host. */
  host: string
  /** When the state was recorded: ISO 8601, UTC. */
  at: string
  /** On the host that receives the VM: the store that it comes from. Only that store may replace this copy. */
  origin?: string
}

const states: readonly string[] = membersOf<MoveState>({
  arriving: true,
  released: true,
  'not-started': true,
  'moved-to': true,
  moved: true,
})

const maxText = 1024

/** A move record that is not understood must not count as none: the checkpoint could then be restored on two hosts. */
export function moveRecordFrom(value: unknown): MoveRecord | undefined | 'malformed' {
  if (value === undefined) return undefined
  if (typeof value !== 'object' || value === null) return 'malformed'
  const { state, id, host, at, origin } = value as Record<string, unknown>
  if (!isState(state) || !isUuid(id) || !isMoveText(host)) return 'malformed'
  if (typeof at !== 'string' || Number.isNaN(Date.parse(at))) return 'malformed'
  if (origin === undefined) return { state, id, host, at }
  return isMoveText(origin) ? { state, id, host, at, origin } : 'malformed'
}

/** Text of the other host, which messages and listings show. */
export function isMoveText(value: unknown): value is string {
  return typeof value === 'string' && value !== '' && value.length <= maxText && !/\p{Cc}/u.test(value)
}

/** Whether it is known only to both hosts together where the VM is to run. Nothing may remove such a copy. */
export function isInDoubt(move: { state: MoveState } | undefined): boolean {
  return move?.state === 'arriving' || move?.state === 'moved-to'
}

/** Whether the VM must not be started from this copy. */
export function blocksStart(move: { state: MoveState } | undefined): boolean {
  return move !== undefined && move.state !== 'released'
}

function isState(value: unknown): value is MoveState {
  return states.includes(value as string)
}
