/** May a new checkpoint take this name? Asked before bhyve is, and again at the commit. Runs in the pool. */
import { CheckpointError } from '../errors.js'
import { isForeignFormat } from '../inspect/structure.js'
import { kernelSuffix, manifestSuffix, memorySuffix, metadataSuffix } from '../names.js'
import type { Directory } from './directory.js'

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

function exists(path: string, why: string): CheckpointError {
  return new CheckpointError('ERR_CHECKPOINT_EXISTS', `'${path}' ${why}`, { path })
}
