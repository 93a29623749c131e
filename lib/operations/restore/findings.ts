/** Why a restore would fail or harm, from what is known: no file is opened and nobody asked here. */
import { Buffer } from 'node:buffer'
import { restorablePathBytes, structPathBytes } from '../../base/names.js'
import type { Host } from '../../checkpoint/host.js'
import type { RestoreSettings } from '../settings.js'
import type { CheckpointReport } from '../../store/catalog/restore_records.js'
import type { RestoreBlocker, RestorePlan, RestoreWarning } from '../../base/types.js'
import type { ArgumentsReport, SeenDisk } from '../../bhyve_arguments/report.js'
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
  return [
    blocker('damaged', 'its manifest was written by a newer release of this library: restore with that one'),
  ]
}

/** A checkpoint that is damaged only because nothing proves its content: `again` restores it. */
export function durabilityWarnings({ listed }: CheckpointReport): Warning[] {
  const unproven = listed.problems.filter(({ code }) => code === 'durability-unproven')
  return unproven.map(({ message }) => warning('not-verified', message))
}

export function pathBlockers({ listed, dialect, generation }: CheckpointReport): Blocker[] {
  const limit = dialect === 'struct' || generation === '13.0' ? structPathBytes : restorablePathBytes
  const bytes = Buffer.byteLength(listed.path)
  if (bytes <= limit) return []
  return [blocker('path-too-long', `'${listed.path}' has ${bytes} bytes, bhyve -r opens at most ${limit}`)]
}

/**
 * Since FreeBSD 14 every configured PCI device must be found under its exact name, and what the checkpoint has more is
 * ignored (`vm_restore_devices()` in snapshot.c); nvme, passthru and others that cannot be saved are in no checkpoint.
 * The older shape has one entry per type and no slots: a type without an entry, or with an empty one, is passed over
 * ("Continuing the restore", `vm_restore_user_dev()`), so that bhyve starts. No device can be missed there.
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
  const blockers = missing.map((device) => missed(device, spare))
  // The keyboard controller is no PCI device; bhyve has one on amd64 whatever its arguments are.
  const hasKeyboard = ['amd64', 'x86_64'].includes(architecture)
  if (hasKeyboard && !saved.includes(keyboard))
    blockers.push(blocker('device-missing', `the checkpoint has no ${keyboard}`))
  return blockers
}

const keyboard = 'atkbdc'

/** A bhyve without aliases names a device in its checkpoints as in its arguments. */
function isSameDevice(device: string, saved: string): boolean {
  const [emulation = '', address] = saved.split('@')
  return device === saved || device === `${aliases.get(emulation) ?? emulation}@${address ?? ''}`
}

function missed(device: string, spare: readonly string[]): Blocker {
  const [emulation = '', address = ''] = device.split('@')
  const elsewhere = spare.filter((name) => isSameDevice(`${emulation}@${name.split('@')[1] ?? ''}`, name))
  if (elsewhere.length === 0) return blocker('device-missing', `the checkpoint has no ${device}`)
  return blocker(
    'device-moved',
    `the checkpoint has ${elsewhere.join(', ')}, the arguments have it at ${address}`,
  )
}

export function againBlockers({ listed }: CheckpointReport, { again }: RestoreSettings): Blocker[] {
  if (again || listed.restoredAt === undefined) return []
  const at = listed.restoredAt.toISOString()
  return [
    blocker(
      'already-restored',
      `it was restored at ${at}: its VM may have gone on since (the option 'again' overrides)`,
    ),
  ]
}

/**
 * UFS puts the time on a file at the next look at it, or when it is closed: bhyve closes the disks of a VM a little
 * after its last file (`ufs_itimes` in sys/ufs/ufs/ufs_vnops.c).
 */
const lateTimeMs = process.platform === 'freebsd' ? 2_000 : 0

export interface Findings {
  blockers: Blocker[]
  warnings: Warning[]
}

/**
 * A suspended VM's disks must be as it left them. The disks of one that ran on have moved on by nature: that is a
 * warning unless they show that they have not (put back from a snapshot of theirs, with their times).
 */
export function diskFindings(
  checkpoint: CheckpointReport,
  disks: readonly SeenDisk[],
  again: boolean,
): Findings {
  const newer = disks.filter(
    ({ modifiedMs }) => modifiedMs !== undefined && modifiedMs > checkpoint.disksQuietMs + lateTimeMs,
  )
  const unknown = disks.filter(({ modifiedMs }) => modifiedMs === undefined)
  if (checkpoint.listed.poweredOff === true && !again) {
    return {
      blockers: newer.map((disk) => newerDisk(disk, checkpoint)),
      warnings: unknown.map(unverifiedDisk),
    }
  }
  const moved = checkpoint.listed.poweredOff === true ? newer : [...newer, ...unknown]
  const paths = moved.map(({ path }) => `'${path}'`).join(', ')
  const warnings = moved.length === 0 ? [] : [warning('disks-moved-on', `older than its disks: ${paths}`)]
  if (checkpoint.listed.poweredOff === true) warnings.push(...unknown.map(unverifiedDisk))
  return { blockers: [], warnings }
}

function newerDisk({ path, device, modifiedMs = 0 }: SeenDisk, { disksQuietMs }: CheckpointReport): Blocker {
  const [changed, saved] = [modifiedMs, disksQuietMs].map((time) => new Date(time).toISOString())
  const message = `'${path}' (${device}) was changed at ${changed ?? ''}, after the VM was powered off at ${saved ?? ''}`
  return blocker('disk-newer', `${message} (the option 'again' overrides)`)
}

function unverifiedDisk({ path, device, why = '' }: SeenDisk): Warning {
  return warning('not-verified', `whether '${path}' (${device}) was changed since is not known: ${why}`)
}

/** bhyve takes memory and vCPUs from the checkpoint, whatever the arguments say. */
export function machineWarnings({ listed }: CheckpointReport, machine: Machine): Warning[] {
  const warnings: Warning[] = []
  const { memoryBytes, cpus } = listed
  if (memoryBytes !== undefined && memoryBytes !== machine.memoryBytes) {
    const message = `the arguments give ${machine.memoryBytes} bytes of memory, the checkpoint has ${memoryBytes}`
    warnings.push(warning('memory-differs', message))
  }
  if (cpus !== undefined && cpus !== machine.cpus) {
    warnings.push(
      warning('cpus-differ', `the arguments give ${machine.cpus} vCPUs, the checkpoint has ${cpus}`),
    )
  }
  return warnings
}

export function nameWarnings(
  vm: string,
  { name }: ArgumentsReport,
  { metadataVm }: CheckpointReport,
): Warning[] {
  const names = new Set([vm, name ?? vm, metadataVm ?? vm])
  if (names.size === 1) return []
  const message = `asked for '${vm}', started as '${name ?? vm}', the checkpoint is of '${metadataVm ?? vm}'`
  return [warning('vm-name-differs', message)]
}

export function hostWarnings({ listed, host: then }: CheckpointReport, now: Host): Warning[] {
  const warnings: Warning[] = []
  if (then !== undefined && then.cpuModel !== now.cpuModel) {
    warnings.push(warning('cpu-model-differs', `made on '${then.cpuModel}', this is '${now.cpuModel}'`))
  }
  const [before, here] = [then, now].map((host) => `${host?.os ?? ''} ${host?.release ?? ''}`)
  if (then !== undefined && before !== here) {
    warnings.push(warning('release-differs', `made on ${before ?? ''}, this is ${here ?? ''}`))
  }
  const { memoryBytes = 0 } = listed
  if (memoryBytes > now.freeMemoryBytes) {
    const message = `the guest has ${memoryBytes} bytes of memory, ${now.freeMemoryBytes} are free`
    warnings.push(warning('not-enough-memory', message))
  }
  return warnings
}
