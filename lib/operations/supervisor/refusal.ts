/** Whether a VM can be suspended although a program waits for its bhyve process, and what to do if it cannot. */
import type { Supervisor, SupervisorKind } from '../../bhyve/supervisors/find.js'
import type { SupervisorOption } from './settings.js'

const names: Record<Exclude<SupervisorKind, 'other'>, string> = {
  'vm-bhyve': 'vm-bhyve',
  cbsd: "CBSD's bhyverun.sh",
  libvirt: 'libvirt',
  daemon: 'daemon(8)',
  script: 'a shell script',
}

/** Why the VM is not suspended, as a clause. Undefined if nothing is known against it. */
export function refusalOf(
  vm: string,
  found: Supervisor | undefined,
  option: SupervisorOption,
): string | undefined {
  if (found === undefined || found.kind === 'other' || option === 'mine') return undefined
  if (option === 'vm-bhyve' && found.kind === 'vm-bhyve') return undefined
  return (
    `VM '${vm}' is run by ${names[found.kind]} (${found.evidence}), which may start it again ` +
    `from its disks as soon as it is suspended. ${adviceFor(found.kind)}`
  )
}

function adviceFor(kind: SupervisorKind): string {
  const mine =
    "the option 'supervisor' as 'mine' if you have made sure that nothing starts the VM before it is restored"
  return kind === 'vm-bhyve' ? `Pass the option 'supervisor' as 'vm-bhyve', or ${mine}` : `Pass ${mine}`
}

/** What is to be checked by the operator, as a clause. Undefined if there is nothing. */
export function doubtAbout(
  vm: string,
  found: Supervisor | undefined,
  option: SupervisorOption,
): string | undefined {
  if (found?.kind !== 'other' || option === 'mine') return undefined
  return (
    `a program waits for the bhyve of VM '${vm}' (${found.evidence}), and it is not known whether it starts ` +
    'the VM again from its disks after a suspend'
  )
}
