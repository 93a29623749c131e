/**
 * The directory that holds the inbox of a stage: the stage itself, or a directory of its own in the memory stage. What
 * bhyve writes is first moved out of the inbox into this directory. Runs in the pool.
 */
import { dirname } from 'node:path'
import { CheckpointError, isExhausted } from '../../base/errors.js'
import { Directory } from '../../fs/directory.js'
import { memoryRecord } from '../paths.js'
import { borrowStage, type StageHandle } from './stage_handle.js'

const recordMaxBytes = 8 * 1024

/** Records in the stage that its inbox is in the memory stage. */
export function recordMemory(stage: Directory, memory: Directory): void {
  const { identity } = memory.ownStatus()
  stage.writeNew(memoryRecord, JSON.stringify({ path: memory.path, identity }), false)
}

/** The receiving directory of a stage of this process. */
export function borrowReceiving(handle: StageHandle): Directory {
  const { memory } = handle
  return memory === undefined ? borrowStage(handle) : Directory.borrow(memory.descriptor, memory.path)
}

/**
 * The directory in the memory stage of any stage. Undefined if the stage has none, or if it cannot be opened: a memory
 * stage does not survive a reboot.
 */
export function openMemory(stage: Directory): Directory | undefined {
  try {
    const memory = findMemory(stage)
    return memory === 'lost' ? undefined : memory
  } catch (error) {
    if (!(error instanceof CheckpointError) || isExhausted(error)) throw error
    return undefined
  }
}

/**
 * The same for recovery. `lost`: the stage had such a directory, and it is gone. Throws if that cannot be seen, for example
 * because another file system is mounted over the memory stage.
 */
export function findMemory(stage: Directory): Directory | 'lost' | undefined {
  const { path, identity } = memoryOf(stage)
  if (typeof path !== 'string' || !path.startsWith('/')) return isRecorded(stage) ? 'lost' : undefined
  const memory = Directory.openRealDirectoryIfAny(path)
  if (memory?.ownStatus().identity === identity) return memory
  memory?.[Symbol.dispose]()
  // The directory between them is removed when it is empty.
  using outer = Directory.openPath(dirname(dirname(path)))
  if (deviceOf(outer.ownStatus().identity) === deviceOf(identity)) return 'lost'
  throw new CheckpointError('ERR_SYSTEM', `The memory stage of '${path}' is not there`, { path })
}

function isRecorded(stage: Directory): boolean {
  return stage.statusIfAny(memoryRecord) !== undefined
}

function deviceOf(identity: unknown): unknown {
  return typeof identity === 'string' ? identity.split(':')[0] : undefined
}

/** The identity of the stage's directory in the memory stage, as the stage records it. */
export function memoryIdentityOf(stage: Directory): unknown {
  return memoryOf(stage).identity
}

function memoryOf(stage: Directory): { path?: unknown; identity?: unknown } {
  try {
    const record: unknown = JSON.parse(stage.readTextIfAny(memoryRecord, recordMaxBytes) ?? '{}')
    return typeof record === 'object' && record !== null ? record : {}
  } catch (error) {
    if (error instanceof SyntaxError) return {}
    throw error
  }
}
