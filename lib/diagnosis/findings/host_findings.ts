/** The host: its system, and whether bhyve and the kernel can save VMs. */
import type { Finding } from '../../base/finding_types.js'
import { dialectOfSystem, type System } from '../../bhyve/dialects.js'
import { bhyveProgram, type SnapshotSupport } from '../snapshot_support.js'
import { ok, problem, warning } from './finding.js'

const rebuild =
  'Build and install a world with WITH_BHYVE_SNAPSHOT=yes in /etc/src.conf, and a kernel with options BHYVE_SNAPSHOT'

export function systemFindings({ platform, release }: System): Finding[] {
  if (platform === 'freebsd') return [ok('host-supported', `this host runs FreeBSD ${release}`)]
  const message = `this host runs ${platform}, which has no bhyve, so only simulated VMs can be saved`
  return [ok('simulator-host', message)]
}

export function dialectFindings(system: System): Finding[] {
  if (system.platform !== 'freebsd') return []
  const dialect = dialectOfSystem(system)
  if (dialect !== undefined)
    return [ok('dialect-known', `the bhyve of FreeBSD ${system.release} uses dialect '${dialect}'`)]
  return [
    warning(
      'dialect-unknown',
      `the release ${system.release} does not determine the dialect of bhyve`,
      "If every checkpoint fails and no file is made, pass the option 'dialect' as 'descriptor'",
    ),
  ]
}

export function supportFindings({ bhyve, kernel }: SnapshotSupport): Finding[] {
  return [bhyveFinding(bhyve), kernelFinding(kernel)]
}

function bhyveFinding(support: SnapshotSupport['bhyve']): Finding {
  if (support === 'yes') return ok('bhyve-with-snapshots', `'${bhyveProgram}' was built with BHYVE_SNAPSHOT`)
  if (support === 'no') {
    const message = `'${bhyveProgram}' was built without BHYVE_SNAPSHOT, so its VMs have no checkpoint socket`
    return problem('bhyve-without-snapshots', message, rebuild)
  }
  const message = `'${bhyveProgram}' cannot be started, so it is not known whether it supports checkpoints`
  return warning('bhyve-unknown', message, `Run '${bhyveProgram} -h': its output must have the option -r`)
}

function kernelFinding(support: SnapshotSupport['kernel']): Finding {
  if (support === 'yes') return ok('kernel-with-snapshots', 'the kernel was built with BHYVE_SNAPSHOT')
  if (support === 'no') {
    const message = 'the kernel was built without BHYVE_SNAPSHOT, so every checkpoint fails'
    return problem('kernel-without-snapshots', message, rebuild)
  }
  const message = 'the kernel does not report its options, so it is not known whether it supports checkpoints'
  return warning(
    'kernel-unknown',
    message,
    'Build the kernel with options INCLUDE_CONFIG_FILE and BHYVE_SNAPSHOT',
  )
}

export function vmmFindings(isLoaded: boolean): Finding[] {
  if (isLoaded) return [ok('vmm-loaded', 'the kernel module vmm is loaded')]
  return [
    problem(
      'vmm-not-loaded',
      'the kernel module vmm is not loaded, so no VM can run',
      'Run kldload vmm, and add vmm_load="YES" to /boot/loader.conf',
    ),
  ]
}
