/**
 * Finds the package's own files, from which the threads, the simulator and the addon are started. These files are
 * missing if a bundler has copied the library into another file.
 */
import fs from 'node:fs'
import { fileURLToPath } from 'node:url'
import { CheckpointError } from './errors.js'

/** Undefined in a CommonJS bundle. */
const own = import.meta.url as string | undefined

/** Returns the path of a file in `dist`. Throws `ERR_NATIVE_UNAVAILABLE` if the library was bundled. */
export function packageFile(name: string): string {
  const file = own === undefined ? undefined : fileURLToPath(new URL(`../${name}`, own))
  if (file !== undefined && fs.existsSync(file)) return file
  const into = own === undefined ? 'a CommonJS file' : `'${fileURLToPath(own)}'`
  throw new CheckpointError(
    'ERR_NATIVE_UNAVAILABLE',
    `The package bhyve-checkpoint was bundled into ${into}, but the files of its addon and its threads were not ` +
      `('${name}' is missing). Exclude the package from the bundle (esbuild: --external:bhyve-checkpoint) and ` +
      'install it beside the bundle (see docs/install.md, "In a bundle")',
  )
}
