/**
 * Finds the checkpoint socket of a VM, checks its owner and derives the dialect from its path. It only reads the status
 * of files and sends nothing (protocol.md sections 1 and 3). Runs in the pool, except for a create or suspend.
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
  /** `/dev/vmm`: it has a file for each VM in the kernel. */
  vmmDirectory: string
  dialect: Dialect | 'auto'
  trustedUids: readonly number[]
}

export interface Located {
  socketPath: string
  /** Derived from the path of the socket: dialect `struct` has a directory of its own. */
  kind: 'struct' | 'nvlist'
  ownerUid: number
  /** Identifies the file of the socket. */
  identity: string
  /** Not before bhyve created the socket, in milliseconds since the epoch. */
  changedMs: number
}

const othersWrite = 0o002
const sticky = 0o1000

/** Returns all sockets to which a request for the VM can be sent, the preferred one first. Throws if there is none. */
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
    return {
      ...candidate,
      identity,
      changedMs: status.ctimeMs,
      ownerUid: checkedOwner(status, candidate.socketPath, target),
    }
  })
}

function candidates({ runDirectory, vm, dialect }: Target): Pick<Located, 'socketPath' | 'kind'>[] {
  const struct = { socketPath: `${runDirectory}/checkpoint/${vm}`, kind: 'struct' } as const
  const nvlist = { socketPath: `${runDirectory}/${vm}`, kind: 'nvlist' } as const
  if (dialect === 'auto') return [struct, nvlist]
  return dialect === 'struct' ? [struct] : [nvlist]
}

/** Older systems silently truncate a longer path. Two VMs would then share a socket. */
function assertFits({ vm, dialect, runDirectory }: Target, socketPath: string): void {
  const capacity = loadNative().socketPathCapacity
  // If the dialect is unknown, measure only the nvlist path. The longer `struct` path may be unused, so it need not fit.
  const measured = dialect === 'auto' ? `${runDirectory}/${vm}` : socketPath
  if (Buffer.byteLength(measured) <= capacity) return
  throw new CheckpointError(
    'ERR_PATH_TOO_LONG',
    `'${measured}' is too long for a socket path, which can have at most ${String(capacity)} bytes. Choose a shorter ` +
      'run directory or VM name',
    { vm, path: measured },
  )
}

/**
 * Rejects a run directory in which others can rename files. They could replace the socket of a VM with that of another
 * VM. The owner and the process would still be trusted, but the wrong VM would be saved or powered off. The sticky bit
 * prevents such renames. `checkedOwner` rejects sockets that have a second name.
 */
function assertGuarded(directory: string, socketPath: string, target: Target): void {
  // existsSync() also returns false if a parent is not a directory.
  const status = fs.existsSync(directory) ? fs.statSync(directory, { throwIfNoEntry: false }) : undefined
  if (status?.isDirectory() !== true) return
  const { vm, trustedUids } = target
  const isTrusted = [0, process.geteuid?.(), ...trustedUids].includes(status.uid)
  const isOpen = (status.mode & othersWrite) !== 0 && (status.mode & sticky) === 0
  if (isTrusted && !isOpen) return
  const uid = String(status.uid)
  const [why, advice] = isTrusted
    ? ['is writable by every user', `Run chmod o-w '${directory}'`]
    : [
        `belongs to uid ${uid}, which is not trusted`,
        `Run chown root '${directory}' or, if you trust that user, add uid ${uid} with the option 'trustedUids'`,
      ]
  const message =
    `The run directory '${directory}' ${why}. Another user could have replaced the socket of VM '${vm}'. ` +
    `Nothing was sent to bhyve. ${advice}`
  throw new CheckpointError('ERR_UNTRUSTED_PEER', message, { vm, path: socketPath })
}

function statusIfAny(path: string, target: Target): fs.Stats | undefined {
  try {
    return fs.lstatSync(path)
  } catch (error) {
    if (!isNodeSystemError(error)) throw error
    // ENOTDIR: `checkpoint` is the socket of a VM named 'checkpoint'. ENAMETOOLONG: no file can have that name.
    if (['ENOENT', 'ENOTDIR', 'ENAMETOOLONG'].includes(error.code ?? '')) return undefined
    if (error.code !== 'EACCES' && error.code !== 'EPERM') throw error
    throw new CheckpointError(
      'ERR_PERMISSION',
      `No permission to read the status of '${path}'. Run as the user that bhyve runs as`,
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
      `The socket '${path}' belongs to uid ${String(status.uid)}, which is not trusted ` +
        `(trusted: ${trustedUids.join(', ')}). Nothing was sent to bhyve. If that user runs the VM, add ` +
        `uid ${String(status.uid)} with the option 'trustedUids'`,
      { vm, path },
    )
  }
  if (status.nlink !== 1) {
    const message =
      `The socket '${path}' of VM '${vm}' has ${String(status.nlink)} hard links, so another user could have replaced ` +
      'the socket by that of another VM. Nothing was sent to bhyve. Remove the links that bhyve did not create'
    throw new CheckpointError('ERR_UNTRUSTED_PEER', message, { vm, path })
  }
  return status.uid
}

function notASocket({ vm }: Target, path: string): CheckpointError {
  return new CheckpointError(
    'ERR_VM_NOT_RUNNING',
    `VM '${vm}' has no checkpoint socket: '${path}' is not a socket. ` +
      "Check the VM name and the option 'runDirectory'",
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
      `VM '${vm}' exists in the kernel but has no checkpoint socket in '${runDirectory}'. Either the bhyve of this VM ` +
        'was built without BHYVE_SNAPSHOT, or it uses another run directory (-o rundir=). If it uses another one, ' +
        "pass that directory with the option 'runDirectory'",
      { vm, path, vmState: 'running' },
    )
  }
  if (!fs.existsSync(runDirectory)) {
    const message =
      `The run directory '${runDirectory}' does not exist, so no request can be sent to VM '${vm}'. ` +
      "Check the option 'runDirectory'"
    return new CheckpointError('ERR_VM_NOT_RUNNING', message, { vm, path, vmState: 'unknown' })
  }
  return socketElsewhere(target) ?? withoutSocket(target)
}

function withoutSocket(target: Target): CheckpointError {
  const { vm } = target
  // Report the path that newer releases of bhyve use.
  const path = candidates(target).at(-1)?.socketPath ?? ''
  const message = `VM '${vm}' is not running: it has no socket '${path}'`
  return new CheckpointError('ERR_VM_NOT_RUNNING', message, { vm, path, vmState: 'off' })
}

/** Returns an error if the socket of this VM is in the directory of another dialect than the option `dialect`. */
function socketElsewhere(target: Target): CheckpointError | undefined {
  const { vm, dialect } = target
  const other = candidates({ ...target, dialect: 'auto' }).find(({ socketPath }) =>
    statusIfAny(socketPath, target)?.isSocket(),
  )
  if (other === undefined) return undefined
  const path = other.socketPath
  const message =
    `The socket of VM '${vm}' is '${path}', a path that a bhyve of dialect '${dialect}' does not use. ` +
    "Omit the option 'dialect'"
  return new CheckpointError('ERR_VM_NOT_RUNNING', message, { vm, path, vmState: 'unknown' })
}

/** The FreeBSD kernel has a file in `vmmDirectory` for each of its VMs. Other systems have no such files. */
export function isKnownToKernel({ vm, vmmDirectory }: { vm: string; vmmDirectory: string }): boolean {
  return fs.existsSync(`${vmmDirectory}/${vm}`)
}
