/**
 * What a stage says that is going to hold a suspended VM: the set in it is the VM, so it is never thrown away as long
 * as it may hold anything. Written, and on the disk, before bhyve is asked. Runs in the pool.
 */
import fs from 'node:fs'
import os from 'node:os'
import type { ManifestHost } from '../inspect/manifest.js'
import { isFailure, loadNative } from '../native.js'
import { isCheckpointName } from '../names.js'
import type { Directory } from './directory.js'
import { spaceReserve } from './paths.js'
import { borrowStage, type StageHandle } from './stage_handle.js'

const { ESRCH } = os.constants.errno

/** In a stage: that it is a suspend's, and under which name it belongs. */
export const intentRecord = 'intent'
/** In a stage: the process that was asked. Without it nobody was. */
const peerRecord = 'peer'
const recordMaxBytes = 4096
/** A manifest without digests, the folders' own blocks, and the records. */
const reservedBytes = 64 * 1024
/** Where a record cannot be read: nothing is ever replaced by such a set. */
const unknownIntent: Intent = { vm: '', name: 'suspend', ifExists: 'fail' }

export interface Intent {
  vm: string
  name: string
  ifExists: 'replace' | 'fail'
  host?: ManifestHost | undefined
  /** The name that was asked for, where the set goes under another one. */
  wanted?: string | undefined
}

/** Who writes into the stage. */
export interface Writer {
  pid: number
  startedAt: string | undefined
  dialect: string
}

/** As it is read back: nothing is certain. */
interface WriterRecord {
  pid: unknown
  startedAt: unknown
  dialect: string | undefined
}

/** Forced to the disk whatever the caller's settings: after a power failure it is what the stage is known by. */
export function writeIntent(stage: Directory, intent: Intent): void {
  stage.writeNew(spaceReserve, ' '.repeat(reservedBytes), false)
  stage.writeNew(intentRecord, JSON.stringify({ ...intent, boot: bootId() }), true)
}

/** Undefined where the stage is not a suspend's. */
export function readIntent(stage: Directory): Intent | undefined {
  if (stage.statusIfAny(intentRecord) === undefined) return undefined
  const { vm, name, ifExists, host, wanted } = (readRecord(stage, intentRecord) ?? {}) as Partial<Intent>
  if (typeof vm !== 'string' || typeof name !== 'string' || !isCheckpointName(name)) return unknownIntent
  const known = { vm, name, ifExists: ifExists === 'replace' ? ifExists : ('fail' as const), host }
  return typeof wanted === 'string' && isCheckpointName(wanted) ? { ...known, wanted } : known
}

/** The stage's set goes under another name from now on. */
export function renameIntent(stage: Directory, intent: Intent, name: string): Intent {
  const wanted = intent.wanted ?? intent.name
  const renamed: Intent = { ...intent, name, ifExists: 'fail', wanted }
  const fresh = `${intentRecord}.new`
  stage.unlink(fresh)
  stage.writeNew(fresh, JSON.stringify({ ...renamed, boot: bootOf(stage) }), true)
  stage.rename(fresh, stage, intentRecord)
  stage.sync()
  return renamed
}

/**
 * Before the first byte is sent. Not forced to the disk: it matters only for as long as the process lives, and
 * nothing that is lost with the power leaves a process behind.
 */
export function recordWriter(handle: StageHandle, writer: Writer): void {
  const stage = borrowStage(handle)
  const fresh = `${peerRecord}.new`
  stage.unlink(fresh)
  stage.writeNew(fresh, JSON.stringify(writer), false)
  // Whole or not at all: of a writer that cannot be read nobody knows whether it lives.
  stage.rename(fresh, stage, peerRecord)
}

/** Undefined where nobody was asked. */
export function writerOf(stage: Directory): WriterRecord | undefined {
  if (stage.statusIfAny(peerRecord) === undefined) return undefined
  const { pid, startedAt, dialect } = (readRecord(stage, peerRecord) ?? {}) as Record<string, unknown>
  return { pid, startedAt, dialect: typeof dialect === 'string' ? dialect : undefined }
}

/** Whether the process that was asked still lives, or may: then it may yet write. */
export function isWriterAlive(stage: Directory): boolean {
  const writer = writerOf(stage)
  if (writer === undefined || !isOfThisBoot(stage)) return false
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
  } catch {
    return undefined
  }
}

/** Otherwise every process that the stage speaks of is gone. */
export function isOfThisBoot(stage: Directory): boolean {
  return bootOf(stage) === bootId()
}

function bootOf(stage: Directory): unknown {
  return (readRecord(stage, intentRecord) as { boot?: unknown } | undefined)?.boot
}

/** Linux counts a process's start in hundredths of a second since the boot; elsewhere it tells boots apart by itself. */
function bootId(): string {
  if (process.platform !== 'linux') return ''
  try {
    return fs.readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim()
  } catch {
    return ''
  }
}
