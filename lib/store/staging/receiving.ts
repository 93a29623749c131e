/**
 * The directory that holds the inbox of a stage: the stage itself, or a directory of its own in the memory stage. What
 * bhyve writes is first moved out of the inbox into this directory. Runs in the pool.
 */
import { dirname } from 'node:path'
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
 * The directory in the memory stage of any stage. Undefined if the stage has none, or if it is gone: a memory stage does
 * not survive a reboot.
 */
export function openMemory(stage: Directory): Directory | undefined {
  const { path, identity } = memoryOf(stage)
  if (typeof path !== 'string' || !path.startsWith('/')) return undefined
  const memory = Directory.openRealDirectoryIfAny(path)
  if (memory === undefined || memory.ownStatus().identity === identity) return memory
  memory[Symbol.dispose]()
  return undefined
}

/** Whether the directory of the stage in the memory stage is gone. Throws if that cannot be seen, for example in a jail. */
export function isMemoryLost(stage: Directory): boolean {
  using memory = openMemory(stage)
  if (memory !== undefined || stage.statusIfAny(memoryRecord) === undefined) return false
  const { path } = memoryOf(stage)
  // The directory between them is removed when it is empty.
  if (typeof path === 'string') Directory.openPath(dirname(dirname(path)))[Symbol.dispose]()
  return true
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
