/**
 * Starts threads in a process whose working directory was removed. A thread of Node reads the working directory first
 * and cannot start without one. So the process enters an empty temporary directory, starts the thread, and returns to
 * its own, removed directory.
 */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { systemError } from '../base/errors.js'
import { type Failure, isFailure, loadNative } from '../base/native.js'

/** How long to wait for a thread that may be unable to start. */
const startTimeoutMs = 2_000

/**
 * Starts a thread, which stores 1 in `loaded` once it has loaded its code. If the working directory was removed, waits
 * for that, so that no code of the host program runs in the temporary directory.
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
    Atomics.wait(loaded, 0, 0, startTimeoutMs)
    return started
  } finally {
    if (!isFailure(removed)) native.enterDirectory(removed)
    for (const descriptor of [removed, other]) if (!isFailure(descriptor)) native.close(descriptor)
    fs.rmdirSync(substitute)
  }
}

function succeed(result: number | Failure): number {
  if (isFailure(result)) throw systemError(result, 'Starting a thread in a removed working directory')
  return result
}
