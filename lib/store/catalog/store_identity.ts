/**
 * The id of a VM's checkpoint directory. Host names and paths can be the same on two hosts, so they do not show which of
 * them has sent a copy. A host may only drop copies that its own directory has sent. Runs in the pool.
 */
import { CheckpointError } from '../../base/errors.js'
import { isUuid } from '../../base/names.js'
import { notFound } from '../../checkpoint/read.js'
import { Directory } from '../../fs/directory.js'
import { freshStoreIdName, stagingName, storeIdName } from '../paths.js'
import { isRestoring } from '../staging/restore_lock.js'

const idBytes = 36

export interface StoreIdentity {
  /** Undefined if no move has begun here. */
  id: string | undefined
  /** A restore of this VM, or a move of it to another host, is in progress. */
  isRestoring: boolean
}

const unknown: StoreIdentity = { id: undefined, isRestoring: false }

export function storeIdentity(directoryPath: string): StoreIdentity {
  try {
    using directory = Directory.openRealDirectoryIfAny(directoryPath)
    using staging = directory?.openIfAny(stagingName)
    return staging === undefined ? unknown : { id: idIn(staging), isRestoring: isRestoring(staging) }
  } catch (error) {
    // Another user's directory. Whether that prevents a move is reported elsewhere.
    if (error instanceof CheckpointError && error.code === 'ERR_PERMISSION') return unknown
    throw error
  }
}

/** Makes the id durable. The caller holds the restore lock, so the directory exists. */
export function keepStoreId(directoryPath: string, id: string): void {
  using directory = Directory.openRealDirectoryIfAny(directoryPath)
  if (directory === undefined) throw notFound(directoryPath, stagingName)
  using staging = directory.open(stagingName)
  if (idIn(staging) === id) return
  staging.unlink(freshStoreIdName)
  staging.writeNew(freshStoreIdName, id, true)
  staging.rename(freshStoreIdName, staging, storeIdName)
  staging.sync()
}

function idIn(staging: Directory): string | undefined {
  const status = staging.statusIfAny(storeIdName)
  if (status?.kind !== 'file' || status.size !== idBytes) return undefined
  const id = staging.readText(storeIdName, idBytes)
  return isUuid(id) ? id : undefined
}
