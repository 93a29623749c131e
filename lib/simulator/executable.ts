/** Finds the stand-in for the bhyve executable and makes it executable. */
import { accessSync, chmodSync, constants } from 'node:fs'
import { packageFile } from '../base/package_files.js'

/**
 * Makes the file executable, because the compiler and some package managers do not. Returns an empty path in a bundle,
 * which does not contain the file.
 */
export function executablePath(): string {
  try {
    const entryPoint = packageFile('simulator/bhyve.js')
    if (!isExecutable(entryPoint)) makeExecutable(entryPoint)
    return entryPoint
  } catch {
    return ''
  }
}

function isExecutable(entryPoint: string): boolean {
  try {
    accessSync(entryPoint, constants.X_OK)
    return true
  } catch {
    return false
  }
}

// Without permission to change the file, leave it as it is. `node <path>` works without the executable bit.
function makeExecutable(entryPoint: string): void {
  try {
    chmodSync(entryPoint, 0o755)
  } catch {
    return
  }
}
