/**
 * tap loads a coverage module into every process that a test starts, which adds 0.2 seconds to each of them. Coverage is
 * not measured here, so this keeps the module out.
 */
import { createRequire } from 'node:module'

interface ProcessOnSpawn {
  removeAllListeners(): void
}

const onSpawn = createRequire(import.meta.url)('process-on-spawn') as ProcessOnSpawn
onSpawn.removeAllListeners()
const ofRunner = /"?--import=\S*processinfo\S*/
process.env.NODE_OPTIONS = (process.env.NODE_OPTIONS ?? '').replace(ofRunner, '').trim()
