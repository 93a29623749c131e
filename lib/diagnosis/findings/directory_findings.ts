/** The run directory and the directories of the checkpoints: their owners, permissions and file systems. */
import { CheckpointError } from '../../base/errors.js'
import type { MemoryStageReport } from '../../store/staging/memory_stage.js'
import type { Finding } from '../../base/finding_types.js'
import type { DirectoryReport } from '../directory_report.js'
import { type Mount, mountOf } from '../mounts.js'
import { ok, problem, warning } from './finding.js'

const groupOrOthers = 0o077
const others = 0o007
const othersWrite = 0o002
const groupWrite = 0o020
const sticky = 0o1000

/** `trustedUids`: who may own the run directory besides root and this process. */
export function runDirectoryFindings(report: DirectoryReport, trustedUids: readonly number[]): Finding[] {
  const { path, kind, failure, uid = -1, mode = 0 } = report
  const shown = `the run directory '${path}'`
  if (kind === 'missing')
    return [
      warning(
        'run-directory-missing',
        `${shown} does not exist, so no VM with a checkpoint socket runs`,
        "If bhyve uses another directory (-o rundir=), pass it with the option 'runDirectory'",
      ),
    ]
  const unsafe = (why: string, advice: string): Finding[] => [
    problem('run-directory-unsafe', `${shown} ${why}`, advice),
  ]
  if (failure !== undefined)
    return unsafe(`cannot be accessed (${failure})`, 'Run as the user that bhyve runs as')
  if (kind === 'other') return unsafe('is not a directory', "Check the option 'runDirectory'")
  if (![0, process.geteuid?.(), ...trustedUids].includes(uid))
    return unsafe(`belongs to uid ${String(uid)}, which is not trusted`, `Run chown root '${path}'`)
  if ((mode & othersWrite) !== 0 && (mode & sticky) === 0)
    return unsafe(
      'is writable by every user, who could replace the socket of a VM by that of another VM',
      `Run chmod o-w '${path}'`,
    )
  if (kind === 'link')
    return unsafe(
      'is a symbolic link, and whoever can replace the link decides which sockets are found',
      "Pass the real directory with the option 'runDirectory'",
    )
  if ((mode & groupWrite) !== 0 && (mode & sticky) === 0)
    return [
      warning(
        'run-directory-unsafe',
        `${shown} is writable by its group, whose members could replace the socket of a VM by that of another VM`,
        `Run chmod g-w '${path}' unless the group may save every VM`,
      ),
    ]
  return [ok('run-directory-usable', `${shown} exists, and other users cannot replace sockets in it`)]
}

/**
 * A directory for checkpoints. `holds`: those of one VM, or the directories of VMs, which the library creates with mode
 * 0700. `trustedUids`: who may own it besides root and this process.
 */
export function checkpointDirectoryFindings(
  report: DirectoryReport,
  holds: 'checkpoints' | 'directories',
  trustedUids: readonly number[],
): Finding[] {
  const { path, kind, failure, existing, isWritable } = report
  const shown = `the checkpoint directory '${path}'`
  if (failure !== undefined || kind === 'other') {
    const why = failure === undefined ? 'is not a directory' : `cannot be accessed (${failure})`
    return [
      problem('checkpoint-directory-unusable', `${shown} ${why}`, "Check the option 'checkpointDirectory'"),
    ]
  }
  if (!isWritable)
    return [
      problem(
        'checkpoint-directory-unusable',
        `this process, which runs as uid ${String(process.geteuid?.())}, cannot write in '${existing}'`,
        'Run as root, or as the user that runs bhyve and owns the checkpoints',
      ),
    ]
  if (kind === 'missing')
    return [
      ok('checkpoint-directory-missing', `${shown} does not exist yet, and the first checkpoint creates it`),
    ]
  return [permissionFinding(report, shown, holds, trustedUids)]
}

/** Guest RAM contains passwords and keys. */
function permissionFinding(
  { path, uid = -1, mode = 0 }: DirectoryReport,
  shown: string,
  holds: 'checkpoints' | 'directories',
  trustedUids: readonly number[],
): Finding {
  const octal = `0${mode.toString(8)}`
  const advice = `Run chmod 700 '${path}'`
  if (![0, process.geteuid?.(), ...trustedUids].includes(uid))
    return problem(
      'checkpoint-directory-open',
      `${shown} belongs to uid ${String(uid)}, who can replace the checkpoints and read the secrets in guest RAM`,
      `Run chown root '${path}'`,
    )
  if ((mode & othersWrite) !== 0)
    return problem(
      'checkpoint-directory-open',
      `${shown} has mode ${octal}, so every user can create files in it`,
      advice,
    )
  if (holds === 'directories' && (mode & groupOrOthers) !== 0)
    return warning(
      'checkpoint-directory-open',
      `${shown} has mode ${octal}, so only the modes of the directories in it protect the secrets in guest RAM`,
      advice,
    )
  if ((mode & others) !== 0)
    return problem(
      'checkpoint-directory-open',
      `${shown} has mode ${octal}, so every user can reach the checkpoints, which contain the secrets in guest RAM`,
      advice,
    )
  if ((mode & groupOrOthers) !== 0)
    return warning(
      'checkpoint-directory-open',
      `${shown} has mode ${octal}, so its group can reach the checkpoints, which contain the secrets in guest RAM`,
      `${advice} unless the group needs them`,
    )
  return ok('checkpoint-directory-usable', `${shown} exists, and only its owner can enter it`)
}

const remote = new Set(['nfs', 'nfs4', 'smbfs', 'cifs', '9p', 'fusefs.sshfs', 'fuse.sshfs'])
const volatile = new Set(['tmpfs', 'ramfs', 'mfs'])

export function fileSystemFindings({ existing }: DirectoryReport, mounts: readonly Mount[]): Finding[] {
  const mount = mountOf(existing, mounts)
  if (mount === undefined)
    return [
      warning(
        'file-system-unknown',
        `the file system of '${existing}' is not known`,
        'Check that it keeps files over a reboot and supports flock(2)',
      ),
    ]
  const { type } = mount
  if (volatile.has(type))
    return [
      warning(
        'file-system-volatile',
        `'${existing}' is on ${type}, so a reboot destroys all checkpoints, even the state of a suspended VM`,
        'Use a file system on a disk',
      ),
    ]
  if (remote.has(type))
    return [
      warning(
        'file-system-remote',
        `'${existing}' is on ${type}, where the locks of two hosts may not exclude each other`,
        'Use a local file system, or let only one host use the directory',
      ),
    ]
  return [ok('file-system-suitable', `'${existing}' is on ${describedType(mount)}`)]
}

function describedType({ type, options }: Mount): string {
  if (type !== 'ufs') return type
  return options.some((option) => option.includes('soft-updates'))
    ? 'ufs with soft updates'
    : 'ufs without soft updates'
}

/** `enabled`: the value of `vfs.zfs.bclone_enabled`, on a system that has it. */
export function blockCloningFindings(
  { existing }: DirectoryReport,
  mounts: readonly Mount[],
  enabled: string | undefined,
): Finding[] {
  if (mountOf(existing, mounts)?.type !== 'zfs' || enabled?.trim() !== '0') return []
  return [
    warning(
      'block-cloning-off',
      `'${existing}' is on zfs, and block cloning is off, so fileDisks can only copy images`,
      'Use zfsDisks, or run sysctl vfs.zfs.bclone_enabled=1 if your release supports it',
    ),
  ]
}

/** `compression`: the property of the dataset. Undefined if it is not known. */
export function compressionFindings(
  { existing }: DirectoryReport,
  compression: string | undefined,
): Finding[] {
  if (compression?.trim() !== 'off') return []
  return [
    warning(
      'compression-off',
      `'${existing}' is on zfs without compression, so checkpoints take more space than they need`,
      'Run zfs set compression=on for its dataset, which applies to new checkpoints',
    ),
  ]
}

/** `stage`: or the error that a checkpoint would reject with. */
export function memoryStageFindings(
  directory: string,
  stage: MemoryStageReport | CheckpointError,
): Finding[] {
  const shown = `the memory stage '${directory}'`
  if (stage instanceof CheckpointError) return [unusable(shown, stage)]
  const usable = ok('memory-stage-usable', `${shown} is on a tmpfs, and other users cannot write there`)
  const large = warning(
    'memory-stage-large',
    `the tmpfs of ${shown} has room for nearly all of the host's memory. Only its size limits what a bhyve writes there`,
    'Mount it with size=, no more than the host can spare',
  )
  const stranded = stage.stranded.map((entry) =>
    warning(
      'memory-stage-stranded',
      `'${entry}' holds a checkpoint of a VM whose checkpoint directory is not there`,
      'Mount that directory and run bhyve-checkpoint list, or remove the entry if the VM is gone',
    ),
  )
  return [usable, ...(stage.isTooLarge ? [large] : []), ...stranded]
}

function unusable(shown: string, { message, syscall }: CheckpointError): Finding {
  const [cause = message, ...advice] = message.split(/\. (?=[A-Z])/)
  return problem(
    'memory-stage-unusable',
    syscall === undefined ? cause : `${shown} cannot be used: ${cause}`,
    advice.join('. ') ||
      `Create it on a tmpfs, with mode 0700 and your uid, or check the option 'memoryStage'`,
  )
}
