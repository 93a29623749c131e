/** Checks names of VMs and checkpoints and the lengths of paths, before any system call. */
import { Buffer } from 'node:buffer'
import { CheckpointError } from './errors.js'

/** The checkpoint files. A checkpoint exists if its RAM file exists. bhyve appends `.kern` and `.meta` itself. */
export const memorySuffix = '.ckp'
export const kernelSuffix = '.ckp.kern'
export const metadataSuffix = '.ckp.meta'
export const manifestSuffix = '.ckp.manifest'

/** The suffixes of the other files, relative to the name of the RAM file. */
export const endings = {
  kernel: kernelSuffix.slice(memorySuffix.length),
  metadata: metadataSuffix.slice(memorySuffix.length),
  manifest: manifestSuffix.slice(memorySuffix.length),
}

/** The longest name that file systems allow for one path component, in bytes. */
const componentBytes = 255
/** The longest checkpoint name in bytes: the longest file name of the checkpoint must still fit. */
export const checkpointNameBytes = componentBytes - manifestSuffix.length
/** `bhyve -r` builds `<path>.kern` and `<path>.meta` in a buffer of 255 bytes (protocol.md section 6). */
export const restorablePathBytes = 250
/** The same limit for the `struct` dialect: its requests hold the path in 100 bytes. */
export const structPathBytes = 95

const control = /\p{Cc}/u
const surrogate = /\p{Surrogate}/u

export function assertVmName(vm: unknown): asserts vm is string {
  const wrong = nameFault(vm, componentBytes)
  if (wrong === undefined) return
  throw new CheckpointError(
    'ERR_INVALID_VM_NAME',
    `A VM name ${wrong}: ${shown(vm)}`,
    detailIfString('vm', vm),
  )
}

/** `vm` is used only for the error. */
export function assertCheckpointName(name: unknown, vm: string): asserts name is string {
  const wrong = nameFault(name, checkpointNameBytes)
  if (wrong === undefined) return
  throw new CheckpointError('ERR_INVALID_CHECKPOINT_NAME', `A checkpoint name ${wrong}: ${shown(name)}`, {
    vm,
    ...detailIfString('checkpoint', name),
  })
}

function detailIfString(key: 'vm' | 'checkpoint', name: unknown): { vm?: string; checkpoint?: string } {
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
  if (control.test(name)) return 'must not contain control characters'
  if (surrogate.test(name)) return 'must be well-formed Unicode'
  if (Buffer.byteLength(name) > maxBytes) return `must be at most ${String(maxBytes)} bytes long`
  return undefined
}

/** True for names that `assertCheckpointName` accepts. Files with other names are not checkpoints of this library. */
export function isCheckpointName(name: string): boolean {
  return nameFault(name, checkpointNameBytes) === undefined
}

/** True for names that `assertVmName` accepts. */
export function isVmName(name: string): boolean {
  return nameFault(name, componentBytes) === undefined
}

/** Throws if `bhyve -r` could not open a checkpoint at this path. */
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
    `'${path}' is ${String(bytes)} bytes long, but bhyve -r can open paths of at most ${String(limit)} bytes. ` +
      'Choose a shorter checkpoint name or checkpoint directory',
    { vm, checkpoint, path },
  )
}

/** Ids of checkpoints and rollbacks become names of files and snapshots, and a manifest may contain anything. */
export function isUuid(id: unknown): id is string {
  return typeof id === 'string' && /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(id)
}
