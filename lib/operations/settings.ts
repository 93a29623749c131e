/** Checks options and fills in defaults, before a call changes or sends anything. */
import {
  assertBoolean,
  assertCallback,
  assertEnvironment,
  assertMilliseconds,
  assertOptions,
  assertSignal,
  assertWords,
  invalid,
} from '../base/assertions.js'
import { CheckpointError } from '../base/errors.js'
import { membersOf } from '../base/union_members.js'
import { assertCheckpointName, assertVmName, isVmName } from '../base/names.js'
import type { DiskSelection } from '../base/disk_types.js'
import { checkedLabels, type Labels } from '../base/labels.js'
import type { CreateOptions, Dialect, FrozenGuest, Progress } from '../base/types.js'
import type { RestoreOptions } from '../base/restore_types.js'

const defaultStallTimeoutMs = 60_000
export const createOptions: readonly string[] = membersOf<keyof CreateOptions>({
  name: true,
  poweroff: true,
  ifExists: true,
  signal: true,
  timeout: true,
  stallTimeout: true,
  onProgress: true,
  labels: true,
  fsync: true,
  digest: true,
  sparsify: true,
  memoryBytes: true,
  disks: true,
  onFrozen: true,
  freezeTimeout: true,
  recordArguments: true,
})
const defaultFreezeTimeoutMs = 5_000
/** The variables that bhyve inherits from this process if the caller gives no `env`. */
const inherited = ['PATH', 'HOME', 'LANG', 'TZ']
const restoreOptions = membersOf<keyof RestoreOptions>({
  args: true,
  bhyve: true,
  env: true,
  again: true,
  verify: true,
  disks: true,
  as: true,
  logFile: true,
  signal: true,
  timeout: true,
})
export const defaultBhyve = '/usr/sbin/bhyve'
/** How the request is sent, and how long bhyve may write nothing. */
interface RequestSettings {
  dialect: Dialect | 'auto'
  /** Milliseconds; 0: no timeout. */
  stallTimeout: number
}

/** What the scan of the guest's RAM does. */
export interface ScanSettings {
  digest: boolean
  sparsify: boolean
}

/** How the checkpoint is published. */
export interface PublicationSettings {
  ifExists: 'replace' | 'fail'
  durable: boolean
}

/** What to do while the guest is frozen, and the longest time in milliseconds that the guest is held for it. */
export interface FreezeSettings {
  onFrozen: ((frozen: FrozenGuest) => void | Promise<void>) | undefined
  timeout: number
}

export interface SaveSettings {
  vm: string
  name: string
  /** Suspend: the VM is powered off once it is saved. */
  poweroff: boolean
  memoryBytes: number | undefined
  signal: AbortSignal | undefined
  timeout: number | undefined
  onProgress: ((progress: Progress) => void) | undefined
  request: RequestSettings
  scan: ScanSettings
  publication: PublicationSettings
  labels: Labels
  disks: readonly DiskSelection[]
  /** Undefined if nothing is to be done while the guest is frozen. */
  freeze: FreezeSettings | undefined
  recordArguments: ArgumentsToRecord
}

/** True: those of the running process. `directory`: where bhyve resolves relative paths. */
type ArgumentsToRecord = boolean | { words: readonly string[]; directory: string }

export function createSettings(vm: unknown, options: CreateOptions, dialect: Dialect | 'auto'): SaveSettings {
  assertVmName(vm)
  assertOptions(options, 'CreateOptions', createOptions)
  const { name = 'checkpoint', ifExists = 'replace', fsync = true, signal, timeout, onProgress } = options
  const { stallTimeout = defaultStallTimeoutMs, memoryBytes, poweroff = false } = options
  const { digest = true, sparsify = true } = options
  assertCheckpointName(name, vm)
  if (ifExists !== 'replace' && ifExists !== 'fail')
    throw invalid("The option 'ifExists' must be 'replace' or 'fail'", ifExists)
  assertBoolean(fsync, 'fsync')
  assertBoolean(poweroff, 'poweroff')
  assertBoolean(digest, 'digest')
  assertBoolean(sparsify, 'sparsify')
  assertSignal(signal)
  if (timeout !== undefined) assertMilliseconds(timeout, 'timeout', 1)
  assertMilliseconds(stallTimeout, 'stallTimeout', 0)
  assertCallback(onProgress)
  if (memoryBytes !== undefined && (!Number.isSafeInteger(memoryBytes) || memoryBytes < 1)) {
    throw invalid("The option 'memoryBytes' must be a positive whole number", memoryBytes)
  }
  return {
    ...{ vm, name, poweroff, memoryBytes, signal, timeout, onProgress },
    request: { dialect, stallTimeout },
    scan: { digest, sparsify },
    publication: { ifExists, durable: fsync },
    labels: checkedLabels(options.labels),
    disks: diskSelections(options.disks),
    freeze: freezeSettings(options, poweroff),
    recordArguments: argumentsToRecord(options.recordArguments),
  }
}

function argumentsToRecord(value: unknown = false): ArgumentsToRecord {
  if (typeof value === 'boolean') return value
  const words = assertWords(
    value,
    "The option 'recordArguments' must be true, false or an array of strings without NUL",
  )
  return { words: [...words], directory: workingDirectory() }
}

function workingDirectory(): string {
  try {
    return process.cwd()
  } catch {
    const message =
      "The option 'recordArguments' needs a working directory, but that of this process was removed. Enter another one"
    throw new CheckpointError('ERR_INVALID_OPTION', message)
  }
}

function diskSelections(disks: unknown = []): readonly DiskSelection[] {
  if (!Array.isArray(disks) || !disks.every(isSelection)) {
    const message =
      "The option 'disks' must be an array of selections such as zfsDisks() and fileDisks() return"
    throw invalid(message, disks)
  }
  return disks
}

function isSelection(value: unknown): value is DiskSelection {
  return typeof value === 'object' && value !== null && 'kind' in value && typeof value.kind === 'string'
}

function freezeSettings(options: CreateOptions, poweroff: boolean): FreezeSettings | undefined {
  const { onFrozen, disks = [], freezeTimeout = defaultFreezeTimeoutMs } = options
  assertMilliseconds(freezeTimeout, 'freezeTimeout', 1)
  if (onFrozen === undefined)
    return disks.length === 0 || poweroff ? undefined : { onFrozen, timeout: freezeTimeout }
  if (typeof onFrozen !== 'function') throw invalid("The option 'onFrozen' must be a function", onFrozen)
  if (poweroff)
    throw invalid(
      "The option 'onFrozen' cannot be used to suspend a VM. A suspended VM no longer changes its disks: use 'disks', or capture them afterwards",
      poweroff,
    )
  return { onFrozen, timeout: freezeTimeout }
}

/** The settings of a restore. `args` is undefined if the checkpoint's arguments are to be used. */
export type RestoreRequest = Omit<RestoreSettings, 'args' | 'recorded'> & {
  args: readonly string[] | undefined
}

export interface RestoreSettings {
  vm: string
  name: string
  args: readonly string[]
  /** Present if the arguments are those of the checkpoint with this identity. bhyve runs in `directory`. */
  recorded: { directory: string; identity: string } | undefined
  bhyve: string
  env: Readonly<Record<string, string>>
  again: boolean
  verify: boolean
  disks: RestoreOptions['disks']
  /** The name of the new VM. Undefined: the VM itself is restored. */
  as: string | undefined
  logFile: string | undefined
  signal: AbortSignal | undefined
  timeout: number | undefined
}

export function restoreSettings(vm: unknown, name: unknown, options: RestoreOptions): RestoreRequest {
  assertVmName(vm)
  assertCheckpointName(name, vm)
  assertOptions(options, 'RestoreOptions', restoreOptions)
  const { args, bhyve = defaultBhyve, again = false, verify = false, logFile, signal, timeout } = options
  const { env = inheritedEnvironment(), disks, as } = options
  if (args !== undefined) assertWords(args, "The option 'args' must be an array of strings without NUL")
  assertAbsolute(bhyve, 'bhyve')
  assertEnvironment(env)
  assertBoolean(again, 'again')
  assertBoolean(verify, 'verify')
  if (logFile !== undefined) assertAbsolute(logFile, 'logFile')
  assertSignal(signal)
  if (timeout !== undefined) assertMilliseconds(timeout, 'timeout', 1)
  assertDisksAndName(vm, disks, as)
  const command = { args: args && [...args], bhyve, env: { ...env } }
  return { vm, name, ...command, again, verify, disks, as, logFile, signal, timeout }
}

function assertDisksAndName(vm: string, disks: unknown, as: unknown): void {
  if (![undefined, 'rollback', 'keep', 'clone'].includes(disks as undefined))
    throw invalid("The option 'disks' must be 'rollback', 'keep' or 'clone'", disks)
  if (as === undefined) {
    if (disks === 'clone')
      throw invalid(
        "The option 'disks' can be 'clone' only with the option 'as', the name of the new VM",
        disks,
      )
    return
  }
  if (typeof as !== 'string' || !isVmName(as)) throw invalid("The option 'as' must be a valid VM name", as)
  if (as === vm) throw invalid("The option 'as' must be another name than that of the saved VM", as)
  if (disks === 'rollback')
    throw invalid(
      "The option 'disks' cannot be 'rollback' together with the option 'as'. Pass 'clone' to start the new VM on copies",
      disks,
    )
}

function inheritedEnvironment(): Record<string, string> {
  const entries = inherited.map((name) => [name, process.env[name]] as const)
  return Object.fromEntries(entries.filter((entry): entry is [string, string] => entry[1] !== undefined))
}

function assertAbsolute(file: unknown, option: string): void {
  const isAbsolute =
    typeof file === 'string' && file.startsWith('/') && !file.endsWith('/') && !file.includes('\0')
  if (!isAbsolute) throw invalid(`The option '${option}' must be the absolute path of a file`, file)
}
