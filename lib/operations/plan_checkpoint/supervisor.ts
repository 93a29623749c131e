/** Whether the program that runs the VM would start it again after a suspend. */
import type { Peer } from '../../bhyve/peer.js'
import { doubtAbout, refusalOf } from '../supervisor/refusal.js'
import { vmBhyveMachine } from '../supervisor/supervision.js'
import { blocked, blockedBy, type Findings, nothing, type PlanContext, warned } from './context.js'

export async function supervisorFindings(context: PlanContext, { pid }: Peer, vm: string): Promise<Findings> {
  const { vmJobs, supervisors } = context
  const { option, libvirtDirectory } = supervisors
  if (option === 'mine' || pid === -1) return nothing
  const found = await vmJobs.supervisorOf({ vm, pid, libvirtDirectory })
  const refusal = refusalOf(vm, found, option)
  if (refusal !== undefined) return blocked('supervised', refusal)
  const doubt = doubtAbout(vm, found, option)
  if (doubt !== undefined) return warned('supervisor-unknown', doubt)
  return option === 'vm-bhyve' ? vmBhyveFindings(context, vm) : nothing
}

/** Whether vm-bhyve can be kept from starting the VM. */
async function vmBhyveFindings(context: PlanContext, vm: string): Promise<Findings> {
  try {
    await context.vmJobs.checkVmBhyve(await vmBhyveMachine(context, vm))
    return nothing
  } catch (error) {
    return blockedBy(error)
  }
}
