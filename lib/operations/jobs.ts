/** Jobs that need no store: what a VM's sockets and arguments are. */
import { type Remote, remote } from '../pool/remote.js'
import type { JobRunner } from '../pool/pool.js'

type Jobs = typeof import('../bhyve/jobs.js') & typeof import('../bhyve_arguments/jobs.js')

export type VmJobs = Remote<Jobs>

export function vmJobs(pool: JobRunner): VmJobs {
  return remote<Jobs>(pool)
}
