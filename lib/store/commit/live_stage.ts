/**
 * What becomes of a live checkpoint's stage whose manager died. A bhyve that answers requests dies with a manager that it
 * cannot answer: then a complete checkpoint in the stage is the last there is of its VM. Always under the exclusive
 * lock of `.staging`; doing it twice, or dying in it, changes nothing. Runs in the pool.
 */
import { inspectCheckpoint } from '../../checkpoint/structure.js'
import { isFailure, loadNative } from '../../base/native.js'
import { lastChangeOf } from '../staging/collect.js'
import { commitStaged } from './commit.js'
import type { Directory } from '../../fs/directory.js'
import { moveToFreshName, type StageDirectories } from '../staging/fresh_name.js'
import { bootOf, type Intent, isWriterAlive, readIntent, writerOf } from '../staging/intent.js'
import { copyLinked } from '../staging/own_files.js'
import { removeEntry } from '../staging/removed.js'
import { publicationOrder } from '../paths.js'
import { gather, holdsCompleteCheckpoint, isComplete, lastWriteMs } from '../staging/stage_files.js'
import { manifestFor, storeManifest } from '../staging/staged_manifest.js'

/** A bhyve that answers does so right after its last write, and would have died of it by then. */
const answeredMs = 2_500
/** A bhyve that has written nothing for so long has given its checkpoint up, and runs on. */
const givenUpMs = 60_000

/** Keeps a complete checkpoint whose bhyve has ended as `<name>-<id>`; removes it where bhyve runs on. */
export function recoverLiveStage(directory: Directory, staging: Directory, id: string): void {
  using stage = staging.open(id)
  const intent = readIntent(stage)
  if (intent === undefined) return
  const fate = fateOf(stage, intent)
  if (fate === 'pending') return
  if (fate === 'removable' || !keep({ directory, staging, stage, id }, intent)) removeEntry(staging, id)
}

function fateOf(stage: Directory, intent: Intent): 'pending' | 'removable' | 'ended' {
  const writer = writerOf(stage)
  // Nobody was asked; or nobody can say what became of it.
  if (typeof writer?.pid !== 'number' || typeof writer.startedAt !== 'string') return 'removable'
  if (isWriterAlive(stage)) return mayYetEnd(stage, intent, writer.pid) ? 'pending' : 'removable'
  // What was never fsynced proves nothing after a reboot, and the VM's disks have moved on.
  return bootOf(stage) === 'this' ? 'ended' : 'removable'
}

/** Whether bhyve still writes, or has yet to answer. */
function mayYetEnd(stage: Directory, { name }: Intent, pid: number): boolean {
  const status = loadNative().processStatus(pid)
  if (isFailure(status) || status.state !== 'running') return true
  const quietMs = Date.now() - lastWriteMs(stage, name)
  return quietMs < (holdsCompleteCheckpoint(stage, name) ? answeredMs : givenUpMs)
}

/** False where there is no complete checkpoint in the stage. */
function keep(directories: StageDirectories, wanted: Intent): boolean {
  const { directory, staging, stage, id } = directories
  gather(stage, wanted.name)
  copyLinked(stage, wanted.name)
  const inspection = inspectCheckpoint(stage, wanted.name)
  if (inspection === undefined || !isComplete(inspection)) return false
  const intent = moveToFreshName(directories, wanted)
  const { name } = intent
  const manifest = manifestFor(stage, intent, lastChangeOf(stage, name), inspection)
  storeManifest(stage, manifest)
  for (const suffix of publicationOrder) stage.syncFile(name + suffix)
  stage.sync()
  commitStaged(directory, staging, stage, id, { name, ifExists: 'fail', manifest, durable: true })
  return true
}
