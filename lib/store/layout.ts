/** Where the checkpoints of each VM lie. */
import { readdir } from 'node:fs/promises'
import path from 'node:path'
import { CheckpointError, isNodeSystemError, toCheckpointError } from '../errors.js'
import { isVmName } from '../names.js'
import type { Layout } from '../types.js'

export const defaultRoot = '/var/db/bhyve-checkpoint'
const defaultCbsdWorkdir = '/usr/jails'

/** `<root>/<vm>/`. */
export function rootLayout(root: string): Layout {
  const base = absolute(root, 'checkpointDirectory')
  return {
    directoryOf: (vm) => path.join(base, vm),
    vms: () => foldersIn(base),
  }
}

/**
 * CBSD's `<workdir>/jails-system/<vm>/checkpoints`. Default workdir `/usr/jails`. What CBSD made there is
 * listed and handled like our own, and CBSD finds what we make.
 *
 * @example
 * const client = createClient({ checkpointDirectory: cbsdLayout() })
 */
export function cbsdLayout(options: { workdir?: string | undefined } = {}): Layout {
  const base = path.join(absolute(options.workdir ?? defaultCbsdWorkdir, 'workdir'), 'jails-system')
  return {
    directoryOf: (vm) => path.join(base, vm, 'checkpoints'),
    async vms() {
      const systems = await foldersIn(base)
      const having = await Promise.all(systems.map((vm) => isFolder(path.join(base, vm, 'checkpoints'))))
      return systems.filter((_, index) => having[index])
    },
  }
}

function absolute(directory: unknown, option: string): string {
  if (typeof directory === 'string' && path.isAbsolute(directory) && !directory.includes('\0')) {
    return path.normalize(directory)
  }
  throw new CheckpointError(
    'ERR_INVALID_OPTION',
    `${option} must be an absolute path: ${JSON.stringify(directory)}`,
  )
}

async function foldersIn(directory: string): Promise<string[]> {
  try {
    const entries = await readdir(directory, { withFileTypes: true })
    return entries.filter((entry) => entry.isDirectory() && isVmName(entry.name)).map((entry) => entry.name)
  } catch (error) {
    if (isNodeSystemError(error) && error.code === 'ENOENT') return []
    throw toCheckpointError(error, `listing the VMs in '${directory}'`)
  }
}

async function isFolder(directory: string): Promise<boolean> {
  return (await foldersIn(path.dirname(directory))).includes(path.basename(directory))
}
