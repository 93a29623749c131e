/** The VMs in the run directory. */
import type { Finding } from '../../base/finding_types.js'
import type { CheckpointError } from '../../base/errors.js'
import type { VirtualMachine } from '../../base/types.js'
import { ok, problem, warning } from './finding.js'

/** `isKnowable`: a connection to the VM's socket does not harm it. */
export function machineFindings({ vm, state, pid, socket }: VirtualMachine, isKnowable: boolean): Finding[] {
  if (state === 'running') return [ok('vm-state', `the VM runs as process ${String(pid)}`)]
  if (state === 'off') return [ok('vm-state', `the VM has ended and left its socket '${socket}'`)]
  if (state === 'paused')
    return [
      warning(
        'vm-paused',
        `the VM is paused (process ${String(pid)}), so it cannot be saved`,
        `Resume it: bhyve-checkpoint resume ${vm}`,
      ),
    ]
  if (isKnowable)
    return [
      warning(
        'vm-state',
        `whether the VM runs cannot be determined ('${socket}'): its process is paused, busy or not visible`,
        `If it is paused, resume it by its process id: bhyve-checkpoint resume ${vm} --pid <pid>`,
      ),
    ]
  return [ok('vm-state', `whether the VM runs cannot be determined without harm to it ('${socket}')`)]
}

/** Why the socket of a VM was rejected. */
export function rejectedFindings({ code, message }: CheckpointError): Finding[] {
  const [cause = message, ...advice] = message.split(/\. (?=[A-Z])/)
  const kind = code === 'ERR_PATH_TOO_LONG' ? 'vm-path-too-long' : 'vm-untrusted'
  return [problem(kind, cause, advice.join('. ') || 'Run as root')]
}

/** A path that a save of the VM would need is too long. */
export function longPathFindings(error: CheckpointError): Finding[] {
  return rejectedFindings(error)
}

export function withoutSocketFindings(runDirectory: string): Finding[] {
  return [
    problem(
      'vm-without-socket',
      `the VM exists in the kernel but has no checkpoint socket in '${runDirectory}'`,
      'Start it with a bhyve that was built with BHYVE_SNAPSHOT, or pass the run directory that it uses (-o rundir=)',
    ),
  ]
}
