import type { ClientOptions } from '../../base/types.js'

export type SupervisorOption = ClientOptions['supervisor']

/** How to find the program that runs a VM, and which one the caller has named. */
export interface SupervisorSettings {
  option: SupervisorOption
  /** The program `vm` of vm-bhyve. */
  vmBhyveProgram: string
  /** The directory in which libvirt records the processes of its VMs. */
  libvirtDirectory: string
}
