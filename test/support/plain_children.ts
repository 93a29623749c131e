/**
 * tap loads a coverage module into each process that a test starts, which takes 0.2 seconds per process. This module
 * prevents it because these tests do not measure coverage.
 */
import { createRequire } from 'node:module'

interface ProcessOnSpawn {
  removeAllListeners(): void
}

const onSpawn = createRequire(import.meta.url)('process-on-spawn') as ProcessOnSpawn
onSpawn.removeAllListeners()
const ofRunner = /"?--import=\S*processinfo\S*/
process.env.NODE_OPTIONS = (process.env.NODE_OPTIONS ?? '').replace(ofRunner, '').trim()
