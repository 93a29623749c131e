/** What the parts of the provider share. */
import type { Remote } from '../../pool/remote.js'

export type ZfsJobs = Remote<typeof import('./jobs.js') & typeof import('../../bhyve_arguments/jobs.js')>
