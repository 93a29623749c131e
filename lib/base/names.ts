/** Names of VMs and checkpoints, and how long paths may be: all decided before any system call. */
import { Buffer } from 'node:buffer'
import { CheckpointError } from './errors.js'

/** A set's files: the first makes the checkpoint exist; bhyve appends the next two suffixes itself. */
export const memorySuffix = '.ckp'
export const kernelSuffix = '.ckp.kern'
export const metadataSuffix = '.ckp.meta'
export const manifestSuffix = '.ckp.manifest'

/** What the other files have behind the name of the RAM file. */
export const endings = {
  kernel: kernelSuffix.slice(memorySuffix.length),
  metadata: metadataSuffix.slice(memorySuffix.length),
  manifest: manifestSuffix.slice(memorySuffix.length),
}

/** What file systems allow for one component. */
const componentBytes = 255
/** A checkpoint's name, so that the longest file of its set still has one. */
export const checkpointNameBytes = componentBytes - manifestSuffix.length
/** `bhyve -r` opens `<path>.kern` and `<path>.meta` from a buffer of 255 (protocol.md section 6). */
export const restorablePathBytes = 250
/** The same for the `struct` dialect, whose requests carry the path in 100 bytes. */
export const structPathBytes = 95

export function assertVmName(vm: unknown): asserts vm is string {
  const wrong = nameFault(vm, componentBytes)
  if (wrong === undefined) return
  throw new CheckpointError('ERR_INVALID_VM_NAME', `a VM name ${wrong}: ${shown(vm)}`, textually('vm', vm))
}

/** `vm` is for the error only. */
export function assertCheckpointName(name: unknown, vm: string): asserts name is string {
  const wrong = nameFault(name, checkpointNameBytes)
  if (wrong === undefined) return
  throw new CheckpointError('ERR_INVALID_CHECKPOINT_NAME', `a checkpoint name ${wrong}: ${shown(name)}`, {
    vm,
    ...textually('checkpoint', name),
  })
}

function textually(key: 'vm' | 'checkpoint', name: unknown): { vm?: string; checkpoint?: string } {
  return typeof name === 'string' ? { [key]: name } : {}
}

function shown(name: unknown): string {
  return typeof name === 'string' ? JSON.stringify(name).slice(0, 300) : typeof name
}

function nameFault(name: unknown, maxBytes: number): string | undefined {
  if (typeof name !== 'string') return 'must be a string'
  if (name === '') return 'must not be empty'
  if (name === '.' || name === '..') return "must not be '.' or '..'"
  if (name.includes('/')) return "must not contain '/'"
  if (/\p{Cc}/u.test(name)) return 'must not contain control characters'
  if (/\p{Surrogate}/u.test(name)) return 'must be well-formed Unicode'
  if (Buffer.byteLength(name) > maxBytes) return `must have at most ${String(maxBytes)} bytes`
  return undefined
}

/** True for names `assertCheckpointName` accepts: what stands on the disk under another name is not ours. */
export function isCheckpointName(name: string): boolean {
  return nameFault(name, checkpointNameBytes) === undefined
}

/** True for names `assertVmName` accepts. */
export function isVmName(name: string): boolean {
  return nameFault(name, componentBytes) === undefined
}

/** Rejects a checkpoint that `bhyve -r` could not open again. */
export function assertRestorablePath(
  path: string,
  vm: string,
  checkpoint: string,
  limit = restorablePathBytes,
): void {
  const bytes = Buffer.byteLength(path)
  if (bytes <= limit) return
  throw new CheckpointError(
    'ERR_PATH_TOO_LONG',
    `'${path}' has ${String(bytes)} bytes, but bhyve -r can open only paths of at most ${String(limit)}: ` +
      'choose a shorter checkpoint name or directory',
    { vm, checkpoint, path },
  )
}
