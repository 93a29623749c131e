/** Jobs that change nothing: they locate sockets, parse bhyve's arguments and inspect directories. */
import { type Remote, remote } from '../pool/remote.js'
import type { JobRunner } from '../pool/pool.js'

type Jobs = typeof import('../bhyve/jobs.js') &
  typeof import('../bhyve_arguments/jobs.js') &
  typeof import('../diagnosis/jobs.js')

export type VmJobs = Remote<Jobs>

export function vmJobs(pool: JobRunner): VmJobs {
  return remote<Jobs>(pool)
}
