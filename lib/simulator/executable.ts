/** Where the stand-in lies, ready to be executed. */
import { accessSync, chmodSync, constants } from 'node:fs'
import { packageFile } from '../base/package_files.js'

/** The compiler and some package managers leave the file without its executable bit. In a bundle there is none: empty. */
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

// An installation that belongs to somebody else stays as it is: `node <path>` works there all the same.
function makeExecutable(entryPoint: string): void {
  try {
    chmodSync(entryPoint, 0o755)
  } catch {
    return
  }
}
