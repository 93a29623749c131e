/** Where the stand-in lies, ready to be executed. */
import { accessSync, chmodSync, constants } from 'node:fs'
import { fileURLToPath } from 'node:url'

const entryPoint = fileURLToPath(new URL('./bhyve.js', import.meta.url))

/** The compiler and some package managers leave the file without its executable bit. */
export function executablePath(): string {
  try {
    accessSync(entryPoint, constants.X_OK)
  } catch {
    makeExecutable()
  }
  return entryPoint
}

// An installation that belongs to somebody else stays as it is: `node <path>` works there all the same.
function makeExecutable(): void {
  try {
    chmodSync(entryPoint, 0o755)
  } catch {
    return
  }
}
