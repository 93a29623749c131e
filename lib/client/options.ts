/** Checks the options of a client and fills in the defaults. */
import path from 'node:path'
import { assertOptions, invalid } from '../base/assertions.js'
import { membersOf } from '../base/union_members.js'
import type { DiskProvider } from '../base/disk_types.js'
import type { ClientOptions, Dialect, Layout } from '../base/types.js'
import type { Target } from '../bhyve/locate.js'
import { defaultRoot, rootLayout } from '../store/layout.js'
import type { Environment } from './environment.js'

export const clientOptions: readonly string[] = membersOf<keyof ClientOptions>({
  runDirectory: true,
  checkpointDirectory: true,
  dialect: true,
  trustedUids: true,
  diskProviders: true,
  supervisor: true,
  memoryStage: true,
})
const dialects: readonly string[] = membersOf<Dialect | 'auto'>({
  auto: true,
  struct: true,
  path: true,
  descriptor: true,
})

export interface ClientSettings {
  target: Omit<Target, 'vm'>
  layout: Layout
  diskProviders: readonly DiskProvider[]
  /** The library creates the checkpoint directories, and removes them once they are empty. */
  ownsDirectories: boolean
  supervisor: ClientOptions['supervisor']
  memoryStage: { directory: string; maxBytes: number | undefined } | undefined
}

export function clientSettings(options: ClientOptions, environment: Environment): ClientSettings {
  assertOptions(options, 'ClientOptions', clientOptions)
  const { runDirectory = environment.defaultRunDirectory } = options
  const { checkpointDirectory = defaultRoot, dialect = 'auto' } = options
  const { trustedUids = [0, process.geteuid?.() ?? 0], diskProviders = [] } = options
  if (typeof runDirectory !== 'string' || !runDirectory.startsWith('/') || runDirectory.includes('\0')) {
    throw invalid("The option 'runDirectory' must be an absolute path", runDirectory)
  }
  if (!dialects.includes(dialect))
    throw invalid(`The option 'dialect' must be one of ${dialects.join(', ')}`, dialect)
  if (!isArrayOf(trustedUids, isUid) || trustedUids.length === 0) {
    throw invalid("The option 'trustedUids' must be a non-empty array of uids", trustedUids)
  }
  assertProviders(diskProviders)
  const { supervisor } = options
  assertSupervisor(supervisor)
  const target = {
    runDirectory: trimmed(runDirectory),
    dialect,
    trustedUids,
    vmmDirectory: environment.vmmDirectory,
  }
  const memoryStage = memoryStageFrom(options.memoryStage, checkpointDirectory)
  return { target, diskProviders, supervisor, memoryStage, ...layoutFrom(checkpointDirectory) }
}

function layoutFrom(directory: string | Layout): { layout: Layout; ownsDirectories: boolean } {
  if (typeof directory === 'string') return { layout: rootLayout(directory), ownsDirectories: true }
  const isLayout =
    typeof directory === 'object' && directory !== null && typeof directory.directoryOf === 'function'
  if (!isLayout)
    throw invalid(
      "The option 'checkpointDirectory' must be a path or a layout such as cbsdLayout() returns",
      directory,
    )
  return { layout: directory, ownsDirectories: false }
}

function assertProviders(providers: unknown): asserts providers is readonly DiskProvider[] {
  if (!isArrayOf(providers, isProvider))
    throw invalid("The option 'diskProviders' must be an array of providers", providers)
}

function assertSupervisor(supervisor: unknown): void {
  if (![undefined, 'mine', 'vm-bhyve'].includes(supervisor as undefined))
    throw invalid("The option 'supervisor' must be 'mine' or 'vm-bhyve'", supervisor)
}

function memoryStageFrom(value: unknown, checkpoints: string | Layout): ClientSettings['memoryStage'] {
  if (value === undefined) return undefined
  assertOptions(value, "the option 'memoryStage'", ['directory', 'maxBytes'])
  const { directory, maxBytes } = value as { directory?: unknown; maxBytes?: unknown }
  const isPath = typeof directory === 'string' && /^\/+[^/]/.test(directory) && !directory.includes('\0')
  if (!isPath) throw invalid("The option 'memoryStage.directory' must be an absolute path", directory)
  if (
    typeof checkpoints === 'string' &&
    `${path.resolve(directory)}/`.startsWith(`${path.resolve(checkpoints)}/`)
  )
    throw invalid("The option 'memoryStage.directory' must not be in the checkpoint directory", directory)
  if (maxBytes !== undefined && (!Number.isSafeInteger(maxBytes) || (maxBytes as number) < 1))
    throw invalid("The option 'memoryStage.maxBytes' must be a positive whole number", maxBytes)
  return { directory: trimmed(directory), maxBytes: maxBytes as number | undefined }
}

function isArrayOf(value: unknown, isMember: (member: unknown) => boolean): boolean {
  return Array.isArray(value) && value.every(isMember)
}

function isProvider(provider: unknown): boolean {
  if (typeof provider !== 'object' || provider === null) return false
  const { kind, prepare, remove, missing } = provider as Partial<DiskProvider>
  const isNamed = typeof kind === 'string' && kind !== ''
  return isNamed && [prepare, remove, missing].every((method) => typeof method === 'function')
}

function isUid(uid: unknown): boolean {
  return Number.isInteger(uid) && (uid as number) >= 0 && (uid as number) < 2 ** 32
}

function trimmed(directory: string): string {
  return directory.length > 1 ? directory.replace(/\/+$/, '') : directory
}
