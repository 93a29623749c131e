/**
 * The records of a stage: what it is for (`intent` or `live`) and which process writes into it (`peer`). When the owner
 * of the stage has died, recovery decides by these records. Runs in the pool.
 */
import os from 'node:os'
import { isExhausted } from '../../base/errors.js'
import { type Labels, labelsFrom } from '../../base/labels.js'
import type { ManifestHost } from '../../checkpoint/manifest.js'
import {
  type RecordedArguments,
  recordedArgumentsFrom,
  recordedMaxBytes,
} from '../../checkpoint/recorded_arguments.js'
import { isFailure, loadNative } from '../../base/native.js'
import { isCheckpointName } from '../../base/names.js'
import { type Boot, bootIdentity, compareBoot } from './boot_identity.js'
import type { Directory } from '../../fs/directory.js'
import { spaceReserve } from '../paths.js'
import { borrowStage, type StageHandle } from './stage_handle.js'

const { ESRCH } = os.constants.errno

/**
 * In a suspend's stage: the VM and the checkpoint name. It is fsynced, because a stage with this record may hold the
 * only copy of a VM.
 */
const intentRecord = 'intent'
/** The same in a live checkpoint's stage. It is not fsynced, because it is not used after a power failure. */
const liveRecord = 'live'
/** In a stage: the bhyve process that the request was sent to. Without this record, no request was sent. */
const peerRecord = 'peer'
/** The records of a live checkpoint's stage. */
export const liveRecords: readonly string[] = [liveRecord, peerRecord]
/** Enough for the labels of a checkpoint. */
const recordMaxBytes = 64 * 1024
/** The record of the writer can contain its arguments. */
const peerMaxBytes = recordMaxBytes + recordedMaxBytes
/** Space for a manifest without digests, the blocks of the directories, and the records. */
const reservedBytes = 128 * 1024 + recordedMaxBytes
/** Used if a suspend's record cannot be read. Such a stage may hold a VM, and it must not replace any checkpoint. */
const unknownIntent: Intent = { vm: '', name: 'suspend', ifExists: 'fail', poweroff: true }

export interface Intent {
  vm: string
  name: string
  ifExists: 'replace' | 'fail'
  /** The request powers the VM off, so the stage will hold the only copy of the VM. If false, the VM runs on. */
  poweroff: boolean
  labels?: Labels
  host?: ManifestHost | undefined
  /** The requested name, if the checkpoint gets another one. */
  wanted?: string | undefined
}

/** The bhyve process that writes into the stage. */
export interface Writer {
  pid: number
  startedAt: string | undefined
  uid: number
  dialect: string
  /** The arguments to be recorded in the manifest. */
  recorded?: RecordedArguments | undefined
}

/** The record as it was read. Its values can have any type. */
interface WriterRecord {
  pid: unknown
  startedAt: unknown
  uid: unknown
  dialect: string | undefined
  recorded: RecordedArguments | undefined
}

/**
 * Writes the intent record. A suspend's record is fsynced whatever the caller's settings are: after a power failure,
 * recovery recognizes the stage by it. A live checkpoint's stage is removed after a power failure, so its record is not
 * fsynced.
 */
export function writeIntent(stage: Directory, intent: Intent): void {
  if (intent.poweroff) stage.writeNew(spaceReserve, ' '.repeat(reservedBytes), false)
  stage.writeNew(recordOf(intent), formatIntent(intent, bootIdentity()), intent.poweroff)
}

function recordOf({ poweroff }: Intent): string {
  return poweroff ? intentRecord : liveRecord
}

/** Call this only if the VM still runs: recovery removes a stage without an intent record. */
export function removeIntent(stage: Directory): void {
  stage.unlink(intentRecord)
  stage.unlink(liveRecord)
}

function formatIntent(intent: Intent, boot: unknown): string {
  return JSON.stringify({ ...intent, boot })
}

/** Whether the request powers the VM off, even if the record cannot be read. */
export function hasIntentOfSuspend(stage: Directory): boolean {
  return stage.statusIfAny(intentRecord) !== undefined
}

/**
 * Undefined if there is no intent record, or if that of a live checkpoint cannot be read. Recovery removes such a
 * stage.
 */
export function readIntent(stage: Directory): Intent | undefined {
  const poweroff = hasIntentOfSuspend(stage)
  const record = readRecord(stage, poweroff ? intentRecord : liveRecord)
  const { vm, name, ifExists, labels, host, wanted } = (record ?? {}) as Partial<Intent>
  if (typeof vm !== 'string' || typeof name !== 'string' || !isCheckpointName(name))
    return poweroff ? unknownIntent : undefined
  const known = {
    ...{ vm, name, poweroff, host, labels: labelsFrom(labels) },
    ifExists: ifExists === 'replace' ? ifExists : ('fail' as const),
  }
  return typeof wanted === 'string' && isCheckpointName(wanted) ? { ...known, wanted } : known
}

/** Records that the checkpoint of the stage gets another name. */
export function renameIntent(stage: Directory, intent: Intent, name: string): Intent {
  const wanted = intent.wanted ?? intent.name
  const renamed: Intent = { ...intent, name, ifExists: 'fail', wanted }
  const record = recordOf(intent)
  const fresh = `${record}.new`
  stage.unlink(fresh)
  stage.writeNew(fresh, formatIntent(renamed, recordedBoot(stage)), true)
  stage.rename(fresh, stage, record)
  stage.sync()
  return renamed
}

/**
 * Records the bhyve process. Must be called before the first byte is sent. A suspend's record is fsynced. Otherwise a
 * power failure could leave a torn record, and on a system without a boot identity the writer would count as alive
 * forever.
 */
export function recordWriter(handle: StageHandle, writer: Writer): void {
  const stage = borrowStage(handle)
  const fresh = `${peerRecord}.new`
  stage.unlink(fresh)
  stage.writeNew(fresh, JSON.stringify(writer), hasIntentOfSuspend(stage))
  // Rename a complete file: if the record were torn, nobody could decide whether the writer lives.
  stage.rename(fresh, stage, peerRecord)
}

/**
 * Throws if the records of a live checkpoint's stage cannot be read now, for example because of a bad disk. Otherwise such a
 * record counts as unusable, and recovery would remove what may be the last state of a VM.
 */
export function assertReadable(stage: Directory): void {
  for (const record of liveRecords) stage.readTextIfAny(record, 1)
}

/** Undefined if no request was sent. */
export function writerOf(stage: Directory): WriterRecord | undefined {
  if (stage.statusIfAny(peerRecord) === undefined) return undefined
  const record = readRecord(stage, peerRecord, peerMaxBytes) ?? {}
  const { pid, startedAt, uid, dialect, recorded } = record as Record<string, unknown>
  return {
    ...{ pid, startedAt, uid, dialect: typeof dialect === 'string' ? dialect : undefined },
    recorded: recordedArgumentsFrom(recorded),
  }
}

/** Whether the bhyve process lives or may live, so that it may still write. */
export function isWriterAlive(stage: Directory): boolean {
  const writer = writerOf(stage)
  if (writer === undefined || bootOf(stage) === 'another') return false
  const { pid, startedAt } = writer
  if (typeof pid !== 'number' || !Number.isInteger(pid) || pid < 1) return true
  const status = loadNative().processStatus(pid)
  // A failed status call does not prove that the process has ended.
  if (isFailure(status)) return status.errno !== ESRCH
  if (status.state === 'zombie') return false
  return startedAt === undefined || status.startedAt === startedAt
}

function readRecord(stage: Directory, name: string, maxBytes = recordMaxBytes): object | undefined {
  try {
    const record: unknown = JSON.parse(stage.readText(name, maxBytes))
    return typeof record === 'object' && record !== null ? record : undefined
  } catch (error) {
    // The process has no free descriptor, so the record could not be read. Do not treat it as empty: recovery could
    // then handle the stage of a running suspend as one that has ended.
    if (isExhausted(error)) throw error
    return undefined
  }
}

/** In which boot the stage was created. */
export function bootOf(stage: Directory): Boot {
  return compareBoot(recordedBoot(stage))
}

function recordedBoot(stage: Directory): unknown {
  const record = readRecord(stage, intentRecord) ?? readRecord(stage, liveRecord)
  return (record as { boot?: unknown } | undefined)?.boot
}
