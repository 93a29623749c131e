/** Derives blockers and warnings of a restore from known facts. Opens no file and contacts no process. */
import { Buffer } from 'node:buffer'
import { restorablePathBytes, structPathBytes } from '../../base/names.js'
import type { Host } from '../../checkpoint/host.js'
import { doubtOf } from '../../checkpoint/moving.js'
import type { RestoreSettings } from '../settings.js'
import type { CheckpointReport } from '../../store/catalog/restore_records.js'
import type { RestoreBlocker, RestorePlan, RestoreWarning } from '../../base/restore_types.js'
import type { InspectedDisk } from '../../bhyve_arguments/report.js'
import type { Machine } from '../../bhyve_arguments/parsed_machine.js'
import { aliases } from '../../bhyve_arguments/slot.js'

export type Blocker = RestorePlan['blockers'][number]
type Warning = RestorePlan['warnings'][number]

export function blocker(code: RestoreBlocker, message: string): Blocker {
  return { code, message }
}

export function warning(code: RestoreWarning, message: string): Warning {
  return { code, message }
}

export function checkpointBlockers(
  { listed, isOfNewerRelease }: CheckpointReport,
  again: boolean,
): Blocker[] {
  const { state } = listed
  const problems = listed.problems.filter(({ code }) => !again || code !== 'durability-unproven')
  const reasons = problems.map(({ message, file }) => (file === undefined ? message : `${file}: ${message}`))
  if (state === 'foreign') return [blocker('foreign', reasons.join('; '))]
  if (state === 'damaged' && problems.length > 0) return [blocker('damaged', reasons.join('; '))]
  if (!isOfNewerRelease) return []
  const message =
    'the manifest was written by a newer release of this library, so this release cannot restore it safely: ' +
    'use the newer release'
  return [blocker('damaged', message)]
}

/** The option `again` restores a checkpoint whose only problem is unproven durability. */
export function durabilityWarnings({ listed }: CheckpointReport): Warning[] {
  const unproven = listed.problems.filter(({ code }) => code === 'durability-unproven')
  return unproven.map(({ message }) => warning('not-verified', message))
}

export function pathBlockers({ listed, dialect, generation }: CheckpointReport): Blocker[] {
  const limit = dialect === 'struct' || generation === '13.0' ? structPathBytes : restorablePathBytes
  const bytes = Buffer.byteLength(listed.path)
  if (bytes <= limit) return []
  const message =
    `the path '${listed.path}' has ${bytes} bytes, but bhyve -r accepts at most ${limit}: ` +
    "move the checkpoint directory to a shorter path, and pass that path with the option 'checkpointDirectory'"
  return [blocker('path-too-long', message)]
}

/**
 * Since FreeBSD 14, bhyve must find every configured PCI device in the checkpoint under its exact name. It ignores
 * additional devices of the checkpoint (`vm_restore_devices()` in snapshot.c). Devices that bhyve cannot save, such as
 * nvme and passthru, are in no checkpoint. Older checkpoints have one entry per device type and no slots. bhyve skips a
 * type whose entry is absent or empty and starts anyway ("Continuing the restore", `vm_restore_user_dev()`), so a
 * missing device does not prevent the restore.
 */
export function deviceBlockers(
  checkpoint: CheckpointReport,
  machine: Machine,
  { machine: architecture }: Host,
): Blocker[] {
  const { devices: saved } = checkpoint.listed
  if (!checkpoint.devicesHaveAddresses || saved === undefined) return []
  const spare = saved.filter((name) => !machine.devices.some((device) => isSameDevice(device, name)))
  const missing = machine.devices.filter((device) => !saved.some((name) => isSameDevice(device, name)))
  const blockers = missing.map((device) => missingDevice(device, spare))
  // The keyboard controller is not a PCI device. On amd64, bhyve always has one, independent of its arguments.
  const hasKeyboard = ['amd64', 'x86_64'].includes(architecture)
  if (hasKeyboard && !saved.includes(keyboard)) {
    const message =
      `the checkpoint has no state for the keyboard controller '${keyboard}', which every bhyve of this host needs, ` +
      'so bhyve would exit: restore another checkpoint of this VM'
    blockers.push(blocker('device-missing', message))
  }
  return blockers
}

const keyboard = 'atkbdc'

/** Releases of bhyve without aliases write the name from the arguments into the checkpoint. */
function isSameDevice(device: string, saved: string): boolean {
  const [emulation = '', address] = saved.split('@')
  return device === saved || device === `${aliases.get(emulation) ?? emulation}@${address ?? ''}`
}

function missingDevice(device: string, spare: readonly string[]): Blocker {
  const [emulation = '', address = ''] = device.split('@')
  const elsewhere = spare.filter((name) => isSameDevice(`${emulation}@${name.split('@')[1] ?? ''}`, name))
  if (elsewhere.length === 0) {
    const message =
      `the arguments configure the device '${device}', but the checkpoint has no state for it, so bhyve would exit: ` +
      'use the arguments that the VM was saved with'
    return blocker('device-missing', message)
  }
  const names = elsewhere.map((name) => `'${name}'`).join(', ')
  const message =
    `the device was saved as ${names}, but the arguments have it at '${address}', so bhyve would exit: ` +
    'use the address at which the device was saved'
  return blocker('device-moved', message)
}

/** No option overrides these: the VM could run on two hosts. */
export function moveBlockers({ listed: { move } }: CheckpointReport): Blocker[] {
  if (move === undefined || move.state === 'released') return []
  if (move.state === 'arriving') return [blocker('move-pending', doubtOf(move))]
  if (move.state === 'moved-to') return [blocker('moved-away', doubtOf(move))]
  if (move.state === 'moved')
    return [blocker('moved-away', `the VM was moved to host '${move.host}': destroy this copy`)]
  const message = `the VM did not start here, so host '${move.host}' may have resumed it: move the VM again, or destroy this copy`
  return [blocker('move-pending', message)]
}

const override = "(to restore it anyway, pass the option 'again')"

/** `isOfMoment`: no disk that the VM could have changed since is used. */
export function againBlockers(
  { listed }: CheckpointReport,
  { again }: RestoreSettings,
  isOfMoment: boolean,
): Blocker[] {
  if (again || isOfMoment || listed.restoredAt === undefined) return []
  const message =
    `the checkpoint was already restored at ${listed.restoredAt.toISOString()}, so the VM may have run and changed its disks since ` +
    override
  return [blocker('already-restored', message)]
}

/**
 * UFS updates a file's time only when its status is next read, or when the file is closed. bhyve closes the disks of a
 * VM shortly after the last checkpoint file (`ufs_itimes` in sys/ufs/ufs/ufs_vnops.c).
 */
const lateTimeMs = process.platform === 'freebsd' ? 2_000 : 0

export interface Findings {
  blockers: Blocker[]
  warnings: Warning[]
}

/**
 * `disks`: those that the restore neither puts back nor copies. The disks of a suspended VM must be unchanged. If the VM
 * kept running after the checkpoint, its disks have normally changed, which is only a warning. There is no warning if
 * their times are old, because they were then restored from a snapshot. A rollback that leaves out a disk which the
 * guest has written to since would start it on disks of two moments.
 */
export function diskFindings(
  checkpoint: CheckpointReport,
  disks: readonly InspectedDisk[],
  settings: RestoreSettings,
): Findings {
  const isPutBack = settings.disks === 'rollback' && checkpoint.disks.length > 0
  const left = isPutBack && !settings.again ? disks.filter(({ writable }) => writable) : []
  const others = timeFindings(
    checkpoint,
    disks.filter((disk) => !left.includes(disk)),
    settings.again,
  )
  return { ...others, blockers: [...others.blockers, ...leftOutBlockers(checkpoint, left)] }
}

function leftOutBlockers(checkpoint: CheckpointReport, disks: readonly InspectedDisk[]): Blocker[] {
  return disks.flatMap((disk) => {
    if (isNewer(disk, checkpoint)) return [newerDisk(disk, checkpoint)]
    if (disk.modifiedMs !== undefined) return []
    const message =
      `the checkpoint has no snapshot of '${disk.path}' (${disk.device}), and it is not known whether this disk has ` +
      `changed since (${disk.why ?? ''}): put it back yourself ${override}`
    return [blocker('disk-newer', message)]
  })
}

function isNewer({ modifiedMs }: InspectedDisk, { disksQuietMs }: CheckpointReport): boolean {
  return modifiedMs !== undefined && modifiedMs > disksQuietMs + lateTimeMs
}

function timeFindings(
  checkpoint: CheckpointReport,
  disks: readonly InspectedDisk[],
  again: boolean,
): Findings {
  const newer = disks.filter((disk) => isNewer(disk, checkpoint))
  const unknown = disks.filter(({ modifiedMs }) => modifiedMs === undefined)
  if (checkpoint.listed.poweredOff === true && !again) {
    return {
      blockers: newer.map((disk) => newerDisk(disk, checkpoint)),
      warnings: unknown.map(unverifiedDisk),
    }
  }
  const moved = checkpoint.listed.poweredOff === true ? newer : [...newer, ...unknown]
  const paths = moved.map(({ path }) => `'${path}'`).join(', ')
  const message =
    `these disks may have changed since the checkpoint was saved, and the guest could damage their file systems: ${paths} ` +
    '(first roll the disks back to snapshots of that moment; this warning does not block the restore)'
  const warnings = moved.length === 0 ? [] : [warning('disks-moved-on', message)]
  if (checkpoint.listed.poweredOff === true) warnings.push(...unknown.map(unverifiedDisk))
  return { blockers: [], warnings }
}

function newerDisk(
  { path, device, modifiedMs = 0 }: InspectedDisk,
  { disksQuietMs }: CheckpointReport,
): Blocker {
  const [changed, saved] = [modifiedMs, disksQuietMs].map((time) => new Date(time).toISOString())
  const message =
    `'${path}' (${device}) was changed at ${changed ?? ''}, after bhyve finished writing the checkpoint at ${saved ?? ''}, ` +
    `so the guest could damage the file systems on this disk ${override}`
  return blocker('disk-newer', message)
}

function unverifiedDisk({ path, device, why = '' }: InspectedDisk): Warning {
  const message = `cannot check whether '${path}' (${device}) was changed after the checkpoint was saved: ${why}`
  return warning('not-verified', message)
}

/** On a restore, bhyve ignores the memory size and the number of vCPUs in its arguments. */
export function machineWarnings({ listed }: CheckpointReport, machine: Machine): Warning[] {
  const warnings: Warning[] = []
  const { memoryBytes, cpus } = listed
  if (memoryBytes !== undefined && memoryBytes !== machine.memoryBytes) {
    const message =
      `the arguments give ${machine.memoryBytes} bytes of memory, but the checkpoint has ${memoryBytes}: ` +
      'bhyve uses the size from the checkpoint'
    warnings.push(warning('memory-differs', message))
  }
  if (cpus !== undefined && cpus !== machine.cpus) {
    const message =
      `the arguments give ${machine.cpus} vCPUs, but the checkpoint has ${cpus}: ` +
      'bhyve uses the number from the checkpoint'
    warnings.push(warning('cpus-differ', message))
  }
  return warnings
}

/** `name`: the VM that bhyve would start. Undefined for a fork, whose name differs because the caller wants it. */
export function nameWarnings(
  vm: string,
  name: string | undefined,
  { metadataVm }: CheckpointReport,
): Warning[] {
  const names = new Set([vm, name ?? vm, metadataVm ?? vm])
  if (names.size === 1) return []
  const message =
    `the names differ: the restore is for VM '${vm}', bhyve would start VM '${name ?? vm}', and the checkpoint was saved ` +
    `from VM '${metadataVm ?? vm}': use the same VM name in all three`
  return [warning('vm-name-differs', message)]
}

export function hostWarnings({ listed, host: then }: CheckpointReport, now: Host): Warning[] {
  const warnings: Warning[] = []
  if (then !== undefined && then.cpuModel !== now.cpuModel) {
    const message =
      `the checkpoint was saved on CPU model '${then.cpuModel}', but this host has '${now.cpuModel}': ` +
      'the guest may crash if it uses features that this CPU lacks'
    warnings.push(warning('cpu-model-differs', message))
  }
  const [before, here] = [then, now].map((host) => `${host?.os ?? ''} ${host?.release ?? ''}`)
  if (then !== undefined && before !== here) {
    const message =
      `the checkpoint was saved on ${before ?? ''}, but this host runs ${here ?? ''}: ` +
      'bhyve may be unable to restore it'
    warnings.push(warning('release-differs', message))
  }
  const { memoryBytes = 0 } = listed
  if (memoryBytes > now.freeMemoryBytes) {
    const message = `the guest has ${memoryBytes} bytes of memory, but this host has only ${now.freeMemoryBytes} free`
    warnings.push(warning('not-enough-memory', message))
  }
  return warnings
}
