/**
 * Finds the package's own files: the code of the threads and the simulator, and the addon. These files are missing if a
 * bundler has copied the library into another file.
 */
import fs from 'node:fs'
import { fileURLToPath } from 'node:url'
import { CheckpointError } from './errors.js'

/** Undefined in a CommonJS bundle. */
const moduleUrl = import.meta.url as string | undefined

/** Returns the path of a file in `dist`. Throws `ERR_NATIVE_UNAVAILABLE` if the library was bundled. */
export function packageFile(name: string): string {
  const file = moduleUrl === undefined ? undefined : fileURLToPath(new URL(`../${name}`, moduleUrl))
  if (file !== undefined && fs.existsSync(file)) return file
  const bundle = moduleUrl === undefined ? 'a CommonJS file' : `'${fileURLToPath(moduleUrl)}'`
  throw new CheckpointError(
    'ERR_NATIVE_UNAVAILABLE',
    `The package bhyve-checkpoint was bundled into ${bundle}, but the files of its addon and its threads were not ` +
      `('${name}' is missing). Exclude the package from the bundle (esbuild: --external:bhyve-checkpoint) and ` +
      'install it beside the bundle (see docs/install.md, "In a bundle")',
  )
}
