/**
 * A thread of Node's cannot start where the working directory was removed: it asks for it first of all. Such a thread is
 * started in an empty directory of ours, and the program gets its own, removed one back.
 */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { systemError } from '../base/errors.js'
import { type Failure, isFailure, loadNative } from '../base/native.js'

/** A thread that cannot start is not waited for any longer. */
const startMs = 2_000

/**
 * Starts a thread; it sets `loaded` once it has loaded its code. In a directory that is there this does not wait. In a
 * removed one it does: nothing of the program's may run in the other directory.
 */
export function startInDirectory<T>(start: () => T, loaded: Int32Array): T {
  const native = loadNative()
  if (native.hasWorkingDirectory() !== 0) return start()
  const substitute = fs.mkdtempSync(path.join(os.tmpdir(), 'bhyve-checkpoint-'))
  const removed = native.openPath('.', fs.constants.O_RDONLY | fs.constants.O_DIRECTORY)
  const other = native.openPath(substitute, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY)
  try {
    succeed(removed)
    succeed(native.enterDirectory(succeed(other)))
    const started = start()
    Atomics.wait(loaded, 0, 0, startMs)
    return started
  } finally {
    if (!isFailure(removed)) native.enterDirectory(removed)
    for (const descriptor of [removed, other]) if (!isFailure(descriptor)) native.close(descriptor)
    fs.rmdirSync(substitute)
  }
}

function succeed(result: number | Failure): number {
  if (isFailure(result)) throw systemError(result, 'starting a thread in a removed working directory')
  return result
}
