/** Which directory holds the checkpoints of a VM. */
import path from 'node:path'
import { assertOptions } from '../base/assertions.js'
import { CheckpointError } from '../base/errors.js'
import { isVmName } from '../base/names.js'
import { sharedPool } from '../pool/pool.js'
import { storeJobs } from './jobs.js'
import type { Layout } from '../base/types.js'

export const defaultRoot = '/var/db/bhyve-checkpoint'
const defaultCbsdWorkdir = '/usr/jails'

/** The default layout: one directory `<root>/<vm>/` for each VM. */
export function rootLayout(root: string): Layout {
  const base = absolute(root, 'checkpointDirectory')
  return {
    directoryOf: (vm) => path.join(base, vm),
    vms: async () => (await storeJobs(sharedPool()).directoriesIn(base)).filter(isVmName),
  }
}

/** Options of `cbsdLayout`. */
export interface CbsdLayoutOptions {
  /** CBSD's working directory, an absolute path. Default `/usr/jails`. */
  workdir?: string | undefined
}

/**
 * Keeps checkpoints in CBSD's directories: `<workdir>/jails-system/<vm>/checkpoints`. The default `workdir` is
 * `/usr/jails`. Checkpoints that CBSD made there are listed and handled like those of this library. CBSD finds the
 * checkpoints that this library makes. Throws `ERR_INVALID_OPTION` if `workdir` is not an absolute path.
 *
 * @example
 * const client = createClient({ checkpointDirectory: cbsdLayout() })
 */
export function cbsdLayout(options: CbsdLayoutOptions = {}): Layout {
  assertOptions(options, 'the layout', ['workdir'])
  const base = path.join(absolute(options.workdir ?? defaultCbsdWorkdir, 'workdir'), 'jails-system')
  return {
    directoryOf: (vm) => path.join(base, vm, 'checkpoints'),
    vms: async () => (await storeJobs(sharedPool()).directoriesWith(base, 'checkpoints')).filter(isVmName),
  }
}

function absolute(directory: unknown, option: string): string {
  if (typeof directory === 'string' && path.isAbsolute(directory) && !directory.includes('\0')) {
    return path.normalize(directory)
  }
  throw new CheckpointError(
    'ERR_INVALID_OPTION',
    `The option '${option}' must be an absolute path: ${JSON.stringify(directory)}`,
  )
}
