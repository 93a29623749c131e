/**
 * The package's own files, which threads, the simulator and the addon are started from. A bundler that takes the library
 * into another file leaves them behind.
 */
import fs from 'node:fs'
import { fileURLToPath } from 'node:url'
import { CheckpointError } from './errors.js'

/** What a bundle as CommonJS leaves of it. */
const own = import.meta.url as string | undefined

/** A file of `dist`, by its path there. Throws `ERR_NATIVE_UNAVAILABLE` where the library was bundled. */
export function packageFile(name: string): string {
  const file = own === undefined ? undefined : fileURLToPath(new URL(`../${name}`, own))
  if (file !== undefined && fs.existsSync(file)) return file
  const into = own === undefined ? 'a CommonJS file' : `'${fileURLToPath(own)}'`
  throw new CheckpointError(
    'ERR_NATIVE_UNAVAILABLE',
    `bhyve-checkpoint was bundled into ${into}, without the files that its addon and its threads are loaded from ` +
      `('${name}' is missing). Leave it out of the bundle (esbuild: --external:bhyve-checkpoint) and install the ` +
      'package beside the bundle: docs/install.md, "In a bundle"',
  )
}
