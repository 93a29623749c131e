/** Jobs that do not use the store: they locate sockets and parse bhyve's arguments. */
import { type Remote, remote } from '../pool/remote.js'
import type { JobRunner } from '../pool/pool.js'

type Jobs = typeof import('../bhyve/jobs.js') & typeof import('../bhyve_arguments/jobs.js')

export type VmJobs = Remote<Jobs>

export function vmJobs(pool: JobRunner): VmJobs {
  return remote<Jobs>(pool)
}
