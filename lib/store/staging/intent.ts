/**
 * The records of a stage: what it is for (`intent`) and which process writes into it (`peer`). Whoever finds the stage
 * after its maker died decides by them. Runs in the pool.
 */
import os from 'node:os'
import { isExhausted } from '../../base/errors.js'
import type { ManifestHost } from '../../checkpoint/manifest.js'
import { isFailure, loadNative } from '../../base/native.js'
import { isCheckpointName } from '../../base/names.js'
import { type Boot, bootIdentity, compareBoot } from './boot_identity.js'
import type { Directory } from '../../fs/directory.js'
import { spaceReserve } from '../paths.js'
import { borrowStage, type StageHandle } from './stage_handle.js'

const { ESRCH } = os.constants.errno

/** In a suspend's stage: under which name its files belong. Fsynced: wherever it is, the stage may hold a VM. */
const intentRecord = 'intent'
/** The same in a live checkpoint's stage. Not fsynced: nothing is concluded from it after a power failure. */
const liveRecord = 'live'
/** In a stage: the process that was asked. Without it nobody was. */
const peerRecord = 'peer'
const recordMaxBytes = 4096
/** A manifest without digests, the folders' own blocks, and the records. */
const reservedBytes = 64 * 1024
/** Where a suspend's record cannot be read: such a stage may hold a VM, and never replaces anything. */
const unknownIntent: Intent = { vm: '', name: 'suspend', ifExists: 'fail', poweroff: true }

export interface Intent {
  vm: string
  name: string
  ifExists: 'replace' | 'fail'
  /** The VM is powered off with it: the stage is going to be all there is of the VM. Otherwise the VM runs on. */
  poweroff: boolean
  host?: ManifestHost | undefined
  /** The name that was asked for, where the set goes under another one. */
  wanted?: string | undefined
}

/** Who writes into the stage. */
export interface Writer {
  pid: number
  startedAt: string | undefined
  uid: number
  dialect: string
}

/** As it is read back: nothing is certain. */
interface WriterRecord {
  pid: unknown
  startedAt: unknown
  uid: unknown
  dialect: string | undefined
}

/**
 * A suspend's is fsynced whatever the caller's settings: after a power failure it is what the stage is known by. A live
 * checkpoint's stage is removed after a power failure.
 */
export function writeIntent(stage: Directory, intent: Intent): void {
  if (intent.poweroff) stage.writeNew(spaceReserve, ' '.repeat(reservedBytes), false)
  stage.writeNew(recordOf(intent), formatIntent(intent, bootIdentity()), intent.poweroff)
}

function recordOf({ poweroff }: Intent): string {
  return poweroff ? intentRecord : liveRecord
}

/** The VM runs on: nothing in the stage is needed any more. */
export function removeIntent(stage: Directory): void {
  stage.unlink(intentRecord)
  stage.unlink(liveRecord)
}

function formatIntent(intent: Intent, boot: unknown): string {
  return JSON.stringify({ ...intent, boot })
}

/** Undefined where there is none: bhyve was never asked to write there. */
export function readIntent(stage: Directory): Intent | undefined {
  const poweroff = stage.statusIfAny(intentRecord) !== undefined
  const record = readRecord(stage, poweroff ? intentRecord : liveRecord)
  const { vm, name, ifExists, host, wanted } = (record ?? {}) as Partial<Intent>
  if (typeof vm !== 'string' || typeof name !== 'string' || !isCheckpointName(name))
    return poweroff ? unknownIntent : undefined
  const known = { vm, name, ifExists: ifExists === 'replace' ? ifExists : ('fail' as const), poweroff, host }
  return typeof wanted === 'string' && isCheckpointName(wanted) ? { ...known, wanted } : known
}

/** The stage's set goes under another name from now on. */
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
 * Before the first byte is sent. A suspend's is fsynced: a record that a power failure has torn would be taken for one of
 * a process that lives, where the system cannot tell one boot from another.
 */
export function recordWriter(handle: StageHandle, writer: Writer): void {
  const stage = borrowStage(handle)
  const fresh = `${peerRecord}.new`
  stage.unlink(fresh)
  stage.writeNew(fresh, JSON.stringify(writer), stage.statusIfAny(intentRecord) !== undefined)
  // Whole or not at all: of a writer that cannot be read nobody knows whether it lives.
  stage.rename(fresh, stage, peerRecord)
}

/** Undefined where nobody was asked. */
export function writerOf(stage: Directory): WriterRecord | undefined {
  if (stage.statusIfAny(peerRecord) === undefined) return undefined
  const { pid, startedAt, uid, dialect } = (readRecord(stage, peerRecord) ?? {}) as Record<string, unknown>
  return { pid, startedAt, uid, dialect: typeof dialect === 'string' ? dialect : undefined }
}

/** Whether the process that was asked still lives, or may: then it may yet write. */
export function isWriterAlive(stage: Directory): boolean {
  const writer = writerOf(stage)
  if (writer === undefined || bootOf(stage) === 'another') return false
  const { pid, startedAt } = writer
  if (typeof pid !== 'number' || !Number.isInteger(pid) || pid < 1) return true
  const status = loadNative().processStatus(pid)
  // A look that failed is no news of a death.
  if (isFailure(status)) return status.errno !== ESRCH
  if (status.state === 'zombie') return false
  return startedAt === undefined || status.startedAt === startedAt
}

function readRecord(stage: Directory, name: string): object | undefined {
  try {
    const record: unknown = JSON.parse(stage.readText(name, recordMaxBytes))
    return typeof record === 'object' && record !== null ? record : undefined
  } catch (error) {
    // A record that was not read must not be taken for one that says nothing: that would settle a live suspend.
    if (isExhausted(error)) throw error
    return undefined
  }
}

/** In which boot the stage was made. */
export function bootOf(stage: Directory): Boot {
  return compareBoot(recordedBoot(stage))
}

function recordedBoot(stage: Directory): unknown {
  const record = readRecord(stage, intentRecord) ?? readRecord(stage, liveRecord)
  return (record as { boot?: unknown } | undefined)?.boot
}
