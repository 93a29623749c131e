/** May a new checkpoint take this name? Asked before bhyve is, and again at the commit. Runs in the pool. */
import { CheckpointError } from '../../base/errors.js'
import { isForeignFormat } from '../../checkpoint/structure.js'
import { kernelSuffix, manifestSuffix, memorySuffix, metadataSuffix } from '../../base/names.js'
import type { Directory } from '../../fs/directory.js'
import { listedCheckpoint } from '../../checkpoint/read.js'

export function assertReplaceable(directory: Directory, name: string, ifExists: 'replace' | 'fail'): void {
  // Past the commit point a folder in the way could not be replaced any more.
  for (const suffix of [memorySuffix, kernelSuffix, metadataSuffix, manifestSuffix]) {
    if (directory.statusIfAny(name + suffix)?.kind === 'directory') {
      throw exists(directory.pathOf(name + suffix), 'is a directory in the way of that checkpoint')
    }
  }
  if (directory.statusIfAny(name + memorySuffix) === undefined) return
  const path = directory.pathOf(name + memorySuffix)
  if (ifExists === 'fail') throw exists(path, 'exists already')
  const isFile = directory.statusIfAny(name + memorySuffix)?.kind === 'file'
  if (isFile && isForeignFormat(directory, name)) {
    throw exists(path, "is another tool's checkpoint and left alone")
  }
}

/** What is going to take a name. */
interface Candidate {
  vm: string
  name: string
  savedMs: number
  poweredOff: boolean
}

/**
 * What was saved later is never replaced by what was saved before it, where one of the two is a suspended VM. Two
 * managers may publish in another order than bhyve wrote.
 */
export function assertNotOlder(directory: Directory, saved: Candidate): void {
  const { vm, name, savedMs, poweredOff } = saved
  const [standing] = listedCheckpoint(directory, vm, name)
  if (standing === undefined || standing.state === 'foreign') return
  // One that cannot be read may be such a state; its file still tells how old it is.
  const isKnown = standing.createdAt !== undefined
  const isState = !isKnown || (standing.poweredOff === true && standing.restoredAt === undefined)
  if (!isState && !poweredOff) return
  // Both are times of files. In the same tick the VM's end came last.
  const standingMs = standing.createdAt?.getTime() ?? memoryModifiedMs(directory, name)
  if (isState ? standingMs < savedMs : standingMs <= savedMs) return
  const what = isState
    ? 'is the state of a VM that was suspended since, and was not restored'
    : 'was saved later'
  throw exists(directory.pathOf(name + memorySuffix), what)
}

function memoryModifiedMs(directory: Directory, name: string): number {
  return directory.statusIfAny(name + memorySuffix)?.mtimeMs ?? 0
}

function exists(path: string, why: string): CheckpointError {
  return new CheckpointError('ERR_CHECKPOINT_EXISTS', `'${path}' ${why}`, { path })
}
