/** What waits in the checkpoint directory of a VM, and whether its next checkpoint fits. */
import type { Finding } from '../../base/finding_types.js'
import type { CheckpointMove } from '../../base/move_state.js'
import { blocksStart, isInDoubt } from '../../checkpoint/move_record.js'
import { doubtOf } from '../../checkpoint/moving.js'
import { marginBytes } from '../../store/staging/space.js'
import type { StagingReport } from '../staging_report.js'
import type { StoredState, StoreReport } from '../store_report.js'
import { ok, problem, warning } from './finding.js'

const nextCall =
  "The next call for this VM (for example listCheckpoints, or 'bhyve-checkpoint list') finishes it"

/** `isRunning`: a process serves the VM's socket. */
export function storeFindings(report: StoreReport, isRunning: boolean): Finding[] {
  const { failure, staging } = report
  const unreadable =
    failure === undefined
      ? []
      : [problem('store-unreadable', failure, 'Run as root, or as the user that owns the checkpoints')]
  return [...unreadable, ...stagingFindings(staging), ...checkpointFindings(report, isRunning)]
}

function stagingFindings(staging: StoreReport['staging']): Finding[] {
  if (staging === undefined) return []
  if (staging === 'busy')
    return [
      warning(
        'store-busy',
        'a process is changing the checkpoints, so what waits is not known',
        'Run it again later',
      ),
    ]
  return [
    ...ownerFindings(staging),
    ...stageFindings(staging),
    ...rollbackFindings(staging),
    ...snapshotFindings(staging),
  ]
}

function ownerFindings({ path, uid }: StagingReport): Finding[] {
  if (uid === process.geteuid?.()) return []
  const message = `'${path}' belongs to uid ${String(uid)}, and only that user can change the checkpoints of the VM`
  return [problem('store-unreadable', message, 'Run as that user')]
}

function stageFindings({ stages, unfinished }: StagingReport): Finding[] {
  const held = stages.filter(({ isHeld }) => isHeld)
  const left = [...stages.filter(({ kind }) => kind === 'left').map(({ path }) => path), ...unfinished]
  const writing = stages.filter(({ kind, isHeld }) => kind === 'writing' && !isHeld)
  const suspends = stages.some(({ kind, poweroff }) => kind !== 'saving' && poweroff)
  return [
    ...held.map(({ path }) =>
      problem(
        'vm-held',
        `a process died while it held the guest ('${path}'), so the VM may be stopped`,
        nextCall,
      ),
    ),
    ...writing.map(({ path }) =>
      warning('recovery-waiting', `bhyve writes into '${path}', whose process has died`, nextCall),
    ),
    ...(left.length === 0
      ? []
      : [
          warning(
            'recovery-waiting',
            `a process died and left ${listed(left)}${suspends ? ', which may hold the only state of the VM' : ''}`,
            nextCall,
          ),
        ]),
  ]
}

function rollbackFindings({ rollback, isRestoring }: StagingReport): Finding[] {
  if (rollback === undefined || isRestoring) return []
  const { path, checkpoint, fault } = rollback
  const what = checkpoint === undefined ? '' : ` to checkpoint '${checkpoint}'`
  const why = fault === undefined ? '' : `, and its record cannot be used because ${fault}`
  return [
    problem(
      'rollback-unfinished',
      `putting the disks back${what} was interrupted ('${path}'), so they are of two moments${why}`,
      fault === undefined
        ? 'Restore a checkpoint of this VM, which first finishes that. Do not start the VM in another way'
        : 'Put the disks back yourself, and then remove that file',
    ),
  ]
}

function snapshotFindings({ snapshotRecords, path }: StagingReport): Finding[] {
  if (snapshotRecords.length === 0) return []
  const count = String(snapshotRecords.length)
  return [
    warning(
      'snapshots-waiting',
      `disk snapshots of ${count} removed or failed checkpoints are recorded in '${path}' and not removed yet`,
      'The next call that creates or removes a checkpoint of this VM removes them',
    ),
  ]
}

function checkpointFindings({ checkpoints, kept }: StoreReport, isRunning: boolean): Finding[] {
  return [
    ...checkpoints.flatMap((checkpoint) => checkpointFinding(checkpoint, isRunning)),
    ...kept.map((name) =>
      warning(
        'files-kept',
        `'${name}' holds files of a VM that was lost`,
        'Inspect them, and destroy the checkpoint',
      ),
    ),
  ]
}

function checkpointFinding(
  { name, state, isSuspended, isRestoreOpen, move }: StoredState,
  isRunning: boolean,
): Finding[] {
  if (move !== undefined && blocksStart(move)) return moveFindings(name, move, isRunning)
  if (state === 'damaged') {
    const only = isSuspended ? ' and may be the only state of the VM' : ''
    const advice = 'Read its problems (bhyve-checkpoint show), and destroy it if you do not need it'
    return [warning('checkpoint-damaged', `checkpoint '${name}' is damaged${only}`, advice)]
  }
  if (!isSuspended) return []
  if (isRestoreOpen)
    return [
      warning(
        'restore-unconfirmed',
        `a restore of the suspended state '${name}' was begun and never confirmed`,
        "If the VM runs, destroy the checkpoint. If it does not, restore it with the option 'again'",
      ),
    ]
  if (isRunning)
    return [
      warning(
        'state-suspended',
        `the VM runs although its suspended state '${name}' was not restored`,
        'If the VM was started from its disks on purpose, destroy the checkpoint: it fits those disks no longer',
      ),
    ]
  const message = `checkpoint '${name}' is the state of the suspended VM and was not restored`
  const advice = 'Restore the VM from it, and do not start the VM from its disks'
  return [{ ...ok('state-suspended', message), advice }]
}

function moveFindings(name: string, move: CheckpointMove, isRunning: boolean): Finding[] {
  if (isInDoubt(move)) {
    const [state = '', advice = ''] = doubtOf(move).split(/: (?=call )/)
    return [
      problem('move-in-doubt', `the move of checkpoint '${name}' is in doubt: ${state}`, capitalized(advice)),
    ]
  }
  const { state, host } = move
  if (state === 'moved' && isRunning) {
    const message = `the VM runs although its state '${name}' was moved to host '${host}', which has started it`
    return [
      problem('moved-away', message, 'Shut the VM down on one of the hosts, and then destroy this copy'),
    ]
  }
  const message =
    state === 'moved'
      ? `checkpoint '${name}' was moved to host '${host}', which has started the VM`
      : `checkpoint '${name}' arrived from host '${host}', and the VM did not start here`
  return [{ ...ok('moved-away', message), advice: 'Destroy this copy if you do not need it' }]
}

function capitalized(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1)
}

/** `reservedBytes`: what other checkpoints that are being written will still occupy. */
export function spaceFindings({ directory, memoryBytes }: StoreReport, reservedBytes: number): Finding[] {
  const { freeBytes, existing } = directory
  if (freeBytes === undefined) {
    const message = `the free space in '${existing}' cannot be read, so it is not known whether a checkpoint fits`
    return [warning('space-unknown', message, 'Run as root, or as the user that owns the checkpoints')]
  }
  if (memoryBytes === undefined)
    return [
      ok('space-unknown', 'the VM has no checkpoint yet, so it is not known whether one fits on the disk'),
    ]
  const requiredBytes = memoryBytes + marginBytes
  const availableBytes = Math.max(0, freeBytes - reservedBytes)
  const numbers = `needs ${String(requiredBytes)} bytes in '${existing}', and ${String(availableBytes)} are available`
  if (requiredBytes <= availableBytes) return [ok('space-enough', `the next checkpoint ${numbers}`)]
  return [
    problem('space-short', `the next checkpoint ${numbers}`, 'Free space, for example with pruneCheckpoints'),
  ]
}

function listed(paths: readonly string[]): string {
  return paths.map((path) => `'${path}'`).join(', ')
}
