/**
 * What a stage says that is going to hold a suspended VM: the set in it is the VM, so it is never thrown away as long
 * as it may hold anything. Written, and on the disk, before bhyve is asked. Runs in the pool.
 */
import fs from 'node:fs'
import type { ManifestHost } from '../inspect/manifest.js'
import { isFailure, loadNative } from '../native.js'
import { isCheckpointName } from '../names.js'
import type { Directory } from './directory.js'
import { borrowStage, type StageHandle } from './stage_handle.js'

/** In a stage: that it is a suspend's, and under which name it belongs. */
export const intentRecord = 'intent'
/** In a stage: the process that was asked. Without it nobody was. */
const peerRecord = 'peer'
const recordMaxBytes = 4096
/** Where a record cannot be read: nothing is ever replaced by such a set. */
const unknownIntent: Intent = { vm: '', name: 'suspend', ifExists: 'fail' }

export interface Intent {
  vm: string
  name: string
  ifExists: 'replace' | 'fail'
  host?: ManifestHost | undefined
}

/** Who writes into the stage, and since which boot of the system its pid means anything. */
export interface Writer {
  pid: number
  startedAt: string | undefined
  dialect: string
}

/** As it is read back: nothing is certain. */
interface WriterRecord {
  pid: unknown
  startedAt: unknown
  boot: unknown
  dialect: string | undefined
}

export function writeIntent(stage: Directory, intent: Intent, durable: boolean): void {
  stage.writeNew(intentRecord, JSON.stringify(intent), durable)
}

/** Undefined where the stage is not a suspend's. */
export function readIntent(stage: Directory): Intent | undefined {
  if (stage.statusIfAny(intentRecord) === undefined) return undefined
  const intent = readRecord(stage, intentRecord) as Partial<Intent> | undefined
  const { vm, name, ifExists, host } = intent ?? {}
  if (typeof vm !== 'string' || typeof name !== 'string' || !isCheckpointName(name)) return unknownIntent
  return { vm, name, ifExists: ifExists === 'replace' ? 'replace' : 'fail', host }
}

/** The stage's set goes under another name from now on. */
export function renameIntent(stage: Directory, intent: Intent, name: string): Intent {
  const renamed: Intent = { ...intent, name, ifExists: 'fail' }
  const fresh = `${intentRecord}.new`
  stage.unlink(fresh)
  stage.writeNew(fresh, JSON.stringify(renamed), true)
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
  stage.unlink(peerRecord)
  stage.writeNew(peerRecord, JSON.stringify({ ...writer, boot: bootId() }), false)
}

export function writerOf(stage: Directory): WriterRecord | undefined {
  if (stage.statusIfAny(peerRecord) === undefined) return undefined
  const record = readRecord(stage, peerRecord) as Partial<Record<keyof WriterRecord, unknown>> | undefined
  const { pid, startedAt, boot, dialect } = record ?? {}
  return { pid, startedAt, boot, dialect: typeof dialect === 'string' ? dialect : undefined }
}

/** Whether the process that was asked still lives: then it may yet write. */
export function isWriterAlive(stage: Directory): boolean {
  const { pid, startedAt, boot } = writerOf(stage) ?? {}
  if (typeof pid !== 'number' || boot !== bootId()) return false
  if (!Number.isInteger(pid) || pid < 1) return true // the system did not tell who it is
  const status = loadNative().processStatus(pid)
  if (isFailure(status) || status.state === 'zombie') return false
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

/** Elsewhere the time at which a process started is a time of day, and tells boots apart by itself. */
function bootId(): string {
  if (process.platform !== 'linux') return ''
  try {
    return fs.readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim()
  } catch {
    return ''
  }
}
