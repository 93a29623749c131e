/**
 * Where is this VM's checkpoint socket, whose is it, and which dialect does its place speak of? Looks at
 * files only; nothing is sent (protocol.md sections 1 and 3). Runs in the pool.
 */
import fs from 'node:fs'
import path from 'node:path'
import { Buffer } from 'node:buffer'
import { CheckpointError, isNodeSystemError } from '../base/errors.js'
import { loadNative } from '../base/native.js'
import type { Dialect } from '../base/types.js'

export interface Target {
  vm: string
  runDirectory: string
  /** `/dev/vmm`: a file for every VM the kernel knows. */
  vmmDirectory: string
  dialect: Dialect | 'auto'
  trustedUids: readonly number[]
}

export interface Located {
  socketPath: string
  /** What the socket's place tells: `struct` has one of its own. */
  kind: 'struct' | 'nvlist'
  ownerUid: number
  /** Of the socket's file. */
  identity: string
}

const othersWrite = 0o002
const sticky = 0o1000

/** Every socket the VM may be asked at, best first; at least one, or it rejects. */
export function locateSocket(target: Target): Located[] {
  const found = candidates(target).flatMap((candidate) => {
    assertFits(target, candidate.socketPath)
    const status = statusIfAny(candidate.socketPath, target)
    return status === undefined ? [] : [{ candidate, status }]
  })
  for (const { socketPath } of candidates(target)) assertGuarded(path.dirname(socketPath), socketPath, target)
  const sockets = found.filter(({ status }) => status.isSocket())
  const [other] = found
  if (sockets.length === 0)
    throw other === undefined ? noSocket(target) : notASocket(target, other.candidate.socketPath)
  return sockets.map(({ candidate, status }) => {
    const identity = `${status.dev}:${status.ino}:${status.ctimeMs}`
    return { ...candidate, identity, ownerUid: checkedOwner(status, candidate.socketPath, target) }
  })
}

function candidates({ runDirectory, vm, dialect }: Target): Omit<Located, 'ownerUid' | 'identity'>[] {
  const struct = { socketPath: `${runDirectory}/checkpoint/${vm}`, kind: 'struct' } as const
  const nvlist = { socketPath: `${runDirectory}/${vm}`, kind: 'nvlist' } as const
  if (dialect === 'auto') return [struct, nvlist]
  return dialect === 'struct' ? [struct] : [nvlist]
}

/** Older systems cut a longer path silently: two VMs would then share a socket. */
function assertFits({ vm, dialect, runDirectory }: Target, socketPath: string): void {
  const capacity = loadNative().socketPathCapacity
  // With the dialect unknown the longer place of `struct` must not speak for the shorter one.
  const measured = dialect === 'auto' ? `${runDirectory}/${vm}` : socketPath
  if (Buffer.byteLength(measured) <= capacity) return
  throw new CheckpointError(
    'ERR_PATH_TOO_LONG',
    `the socket path '${measured}' has more than the ${String(capacity)} bytes a socket's path can have`,
    { vm, path: measured },
  )
}

/**
 * Who may rename what lies in a run directory can put one VM's socket in the place of another's: it would have the
 * right owner, and the right process behind it, and the wrong VM would be saved or powered off. The sticky bit keeps
 * others from renaming; a second name of a socket is refused by itself (`checkedOwner`).
 */
function assertGuarded(directory: string, socketPath: string, target: Target): void {
  // Where a part of the way is no folder either.
  const status = fs.existsSync(directory) ? fs.statSync(directory, { throwIfNoEntry: false }) : undefined
  if (status?.isDirectory() !== true) return
  const { vm, trustedUids } = target
  const isTrusted = [0, process.geteuid?.(), ...trustedUids].includes(status.uid)
  const isOpen = (status.mode & othersWrite) !== 0 && (status.mode & sticky) === 0
  if (isTrusted && !isOpen) return
  const why = isTrusted
    ? `anybody may write in the run directory '${directory}': chmod o-w it`
    : `the run directory '${directory}' belongs to uid ${String(status.uid)}, which is not among the trusted ones`
  const message = `${why}. The socket of VM '${vm}' could be another VM's: nothing was sent`
  throw new CheckpointError('ERR_UNTRUSTED_PEER', message, { vm, path: socketPath })
}

function statusIfAny(path: string, target: Target): fs.Stats | undefined {
  try {
    return fs.lstatSync(path)
  } catch (error) {
    if (!isNodeSystemError(error)) throw error
    // ENOTDIR: `checkpoint` is itself the socket of a VM of that name. ENAMETOOLONG: no file can have that name.
    if (['ENOENT', 'ENOTDIR', 'ENAMETOOLONG'].includes(error.code ?? '')) return undefined
    if (error.code !== 'EACCES' && error.code !== 'EPERM') throw error
    throw new CheckpointError(
      'ERR_PERMISSION',
      `no permission to look at '${path}': run as bhyve's user or as root`,
      {
        vm: target.vm,
        path,
        cause: error,
      },
    )
  }
}

function checkedOwner(status: fs.Stats, path: string, target: Target): number {
  const { vm, trustedUids } = target
  if (!trustedUids.includes(status.uid)) {
    throw new CheckpointError(
      'ERR_UNTRUSTED_PEER',
      `the socket '${path}' belongs to uid ${String(status.uid)}, which is not among the trusted ones ` +
        `(${trustedUids.join(', ')}): nothing was sent. If that user runs the VM, name it in trustedUids`,
      { vm, path },
    )
  }
  if (status.nlink !== 1) {
    const message =
      `the socket '${path}' has ${String(status.nlink)} names, and may be another VM's: nothing was sent. ` +
      'Remove the names that bhyve did not give it'
    throw new CheckpointError('ERR_UNTRUSTED_PEER', message, { vm, path })
  }
  return status.uid
}

function notASocket({ vm }: Target, path: string): CheckpointError {
  return new CheckpointError(
    'ERR_VM_NOT_RUNNING',
    `'${path}' is not a socket: no bhyve serves VM '${vm}' there`,
    {
      vm,
      path,
      vmState: 'unknown',
    },
  )
}

function noSocket(target: Target): CheckpointError {
  const { vm, runDirectory } = target
  const path = `${runDirectory}/${vm}`
  if (isKnownToKernel(target)) {
    return new CheckpointError(
      'ERR_SNAPSHOT_UNSUPPORTED',
      `VM '${vm}' runs, but has no checkpoint socket in '${runDirectory}': its bhyve was built without ` +
        'BHYVE_SNAPSHOT, or uses another run directory (-o rundir=)',
      { vm, path, vmState: 'running' },
    )
  }
  if (!fs.existsSync(runDirectory)) {
    const message = `no VM can be asked: there is no run directory '${runDirectory}' (the option runDirectory)`
    return new CheckpointError('ERR_VM_NOT_RUNNING', message, { vm, path, vmState: 'unknown' })
  }
  return socketElsewhere(target) ?? nothingThere(target)
}

function nothingThere(target: Target): CheckpointError {
  const { vm } = target
  // Of two places the one that later bhyves use.
  const path = candidates(target).at(-1)?.socketPath ?? ''
  const message = `VM '${vm}' is not running: no socket '${path}'`
  return new CheckpointError('ERR_VM_NOT_RUNNING', message, { vm, path, vmState: 'off' })
}

/** The dialect that was named has its sockets in one place, and this VM's is in the other. */
function socketElsewhere(target: Target): CheckpointError | undefined {
  const { vm, dialect } = target
  const other = candidates({ ...target, dialect: 'auto' }).find(({ socketPath }) =>
    statusIfAny(socketPath, target)?.isSocket(),
  )
  if (other === undefined) return undefined
  const path = other.socketPath
  const message =
    `no bhyve of dialect '${dialect}' serves VM '${vm}': its socket is '${path}', where that dialect has none. ` +
    "Leave the option 'dialect' out"
  return new CheckpointError('ERR_VM_NOT_RUNNING', message, { vm, path, vmState: 'unknown' })
}

/** FreeBSD's kernel lists the VMs it has. Elsewhere there is nothing to ask. */
export function isKnownToKernel({ vm, vmmDirectory }: { vm: string; vmmDirectory: string }): boolean {
  return fs.existsSync(`${vmmDirectory}/${vm}`)
}
