/**
 * The steps of a move on a stored checkpoint. Each is one atomic and durable change of the manifest, under the exclusive
 * lock. docs/move.md explains why at every moment exactly one of the two hosts can be made to run the VM. Runs in the
 * pool.
 */
import type { MoveState } from '../../base/move_state.js'
import { CheckpointError } from '../../base/errors.js'
import { isRestoreOpen } from '../../checkpoint/manifest.js'
import { withArguments, withMove } from '../../checkpoint/manifest_changes.js'
import type { MoveRecord } from '../../checkpoint/move_record.js'
import { blocksStart, isInDoubt } from '../../checkpoint/move_record.js'
import { checkpointNames, inspectUnchanged, notFound } from '../../checkpoint/read.js'
import type { RecordedArguments } from '../../checkpoint/recorded_arguments.js'
import type { Inspection } from '../../checkpoint/structure.js'
import { Directory } from '../../fs/directory.js'
import { recover } from '../commit/recover.js'
import { lockStagingIfAny } from '../staging/lock.js'
import { discard } from './destroy.js'
import { lockForReading } from './list.js'
import { inspectForRewrite, lockForRewrite, manifestText, replaceManifest } from './rewrite_manifest.js'

/** A checkpoint that is part of a move. */
export interface MovingCopy {
  name: string
  move: MoveRecord
  /** Whether a restore of it is recorded: `open` if it was never confirmed. */
  restored: 'no' | 'open' | 'yes'
}

/** The copies of all moves in this directory. */
export function movingCopies(directoryPath: string): MovingCopy[] {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) return []
  using _lock = lockForReading(directory)
  return checkpointNames(directory).flatMap((name) => {
    const inspection = inspectUnchanged(directory, name)
    return inspection === undefined ? [] : copyOf(name, inspection)
  })
}

function copyOf(name: string, { manifest }: Inspection): MovingCopy[] {
  if (manifest?.move === undefined) return []
  const { move, restoredAt } = manifest
  return [
    { name, move, restored: restoredAt === undefined ? 'no' : isRestoreOpen(manifest) ? 'open' : 'yes' },
  ]
}

/** Which copy a step changes. */
export interface MoveStep {
  directory: string
  vm: string
  name: string
  id: string
}

/**
 * The commit of a move, on the host that sends the VM. The other host can be made to run the VM from now on, and this one
 * cannot. `identity`: of the state that the other host has. Can be repeated: it is then durable in any case.
 */
export function commitMove(step: MoveStep, identity: string, host: string, at: string): void {
  changeMove(step, (inspection) => {
    const { manifest, problems } = inspection
    const { restoredAt, poweredOff, move } = manifest ?? {}
    const isOwn = move?.state === 'moved-to' && move.id === step.id
    const isFree = !blocksStart(move) && restoredAt === undefined && poweredOff === true
    const isSame = inspection.identity === identity && problems.length === 0
    if (!isOwn && !(isFree && isSame)) throw changed(step)
    return { state: 'moved-to', id: step.id, host, at: isOwn ? move.at : at }
  })
}

/** On the host that sends the VM: the other host has started it. */
export function finishMove(step: MoveStep, at: string): void {
  changeMove(step, ({ manifest }) => ({
    ...ownMove(step, manifest?.move, ['moved-to', 'moved']),
    state: 'moved',
    at,
  }))
}

/** On the host that sends the VM: the VM did not start on the other host and never will, or the commit has failed. */
export function withdrawMove(step: MoveStep): void {
  changeMove(step, ({ manifest }) => {
    if (manifest?.move?.state === 'moved-to') ownMove(step, manifest.move, ['moved-to'])
    return manifest?.move?.state === 'moved-to' ? undefined : manifest?.move
  })
}

/**
 * Somebody who knows where the VM runs decides a move in doubt. `'here'`: this copy can be restored from now on.
 * Rejects if the move is not in doubt.
 */
export function resolveMove(
  directoryPath: string,
  vm: string,
  name: string,
  runs: 'here' | 'elsewhere',
  at: string,
): void {
  changeMove({ directory: directoryPath, vm, name, id: '' }, ({ manifest }) => {
    const { move } = manifest ?? {}
    if (move === undefined || !isInDoubt(move)) throw notInDoubt(vm, name)
    if (runs === 'elsewhere')
      return { ...move, state: move.state === 'arriving' ? 'not-started' : 'moved', at }
    return move.state === 'arriving' ? { ...move, state: 'released', at } : undefined
  })
}

/** On the host that receives the VM: the other host has released it. Returns the copy as it is then. */
export function releaseMove(step: MoveStep, at: string): MovingCopy {
  return changeMove(step, ({ manifest }) => {
    const move = ownMove(step, manifest?.move, ['arriving', 'released', 'not-started'])
    return move.state === 'arriving' ? { ...move, state: 'released', at } : move
  })
}

/**
 * On the host that receives the VM: it did not start. If a restore is recorded, the guest may have run, and nothing is
 * changed. Returns the copy as it is then.
 */
export function refuseMove(step: MoveStep, at: string): MovingCopy {
  return changeMove(step, ({ manifest }) => {
    const move = ownMove(step, manifest?.move, ['arriving', 'released', 'not-started'])
    return manifest?.restoredAt === undefined ? { ...move, state: 'not-started', at } : move
  })
}

/** Records arguments in a state that is about to be moved. */
export function recordArguments(
  directoryPath: string,
  vm: string,
  name: string,
  identity: string,
  recorded: RecordedArguments,
): void {
  using directory = openDirectory(directoryPath, name)
  using staging = lockForRewrite(directory, name)
  const inspection = inspectForRewrite(directory, staging, name)
  if (inspection.identity !== identity) throw changed({ directory: directoryPath, vm, name, id: '' })
  replaceManifest(
    directory,
    staging,
    name,
    withArguments(manifestText(directory, vm, name, inspection), recorded),
  )
}

/**
 * Removes the copies of moves that `isUseless` names by their id and state, if no restore of them is recorded. Their VM
 * never ran from them and never will.
 */
export function discardCopies(
  directoryPath: string,
  useless: readonly { id: string; state: MoveState }[],
): string[] {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  using staging = directory && lockStagingIfAny(directory, 'exclusive')
  if (directory === undefined || staging === undefined) return []
  const stuck = recover(directory, staging)
  const names = checkpointNames(directory).filter((name) => {
    if (stuck.has(name)) return false
    const [copy] = copiesAt(directory, name)
    return copy?.restored === 'no' && useless.some((one) => isOf(copy.move, one))
  })
  discard(directory, staging, names)
  return names
}

function copiesAt(directory: Directory, name: string): MovingCopy[] {
  const inspection = inspectUnchanged(directory, name)
  return inspection === undefined ? [] : copyOf(name, inspection)
}

function isOf(move: MoveRecord, { id, state }: { id: string; state: MoveState }): boolean {
  return move.id === id && move.state === state
}

/** `next` returns the new record, or undefined for none. It throws if the step is not possible. */
function changeMove(step: MoveStep, next: (inspection: Inspection) => MoveRecord): MovingCopy
function changeMove(
  step: MoveStep,
  next: (inspection: Inspection) => MoveRecord | undefined,
): MovingCopy | undefined
function changeMove(
  step: MoveStep,
  next: (inspection: Inspection) => MoveRecord | undefined,
): MovingCopy | undefined {
  const { vm, name } = step
  using directory = openDirectory(step.directory, name)
  using staging = lockForRewrite(directory, name)
  const inspection = inspectForRewrite(directory, staging, name)
  const move = next(inspection)
  replaceManifest(directory, staging, name, withMove(manifestText(directory, vm, name, inspection), move))
  if (move === undefined || inspection.manifest === undefined) return undefined
  return copyOf(name, { ...inspection, manifest: { ...inspection.manifest, move } })[0]
}

function ownMove(step: MoveStep, move: MoveRecord | undefined, states: readonly MoveState[]): MoveRecord {
  if (move?.id === step.id && states.includes(move.state)) return move
  throw changed(step)
}

function openDirectory(directoryPath: string, name: string): Directory {
  const directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) throw notFound(directoryPath, name)
  return directory
}

function notInDoubt(vm: string, name: string): CheckpointError {
  const message = `Checkpoint '${name}' of VM '${vm}' is not part of a move that is in doubt. Nothing was changed`
  return new CheckpointError('ERR_INVALID_OPTION', message, { vm, checkpoint: name })
}

function changed({ vm, name }: MoveStep): CheckpointError {
  const message = `Another process has restored, moved or replaced checkpoint '${name}' of VM '${vm}' meanwhile`
  return new CheckpointError('ERR_CHECKPOINT_BUSY', message, { vm, checkpoint: name, retryable: false })
}
