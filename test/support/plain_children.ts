/**
 * The test runner loads a module of its own into every process that a test starts, which takes each of them 0.2 seconds.
 * It is for coverage, which is not measured here.
 */
import { createRequire } from 'node:module'

interface ProcessOnSpawn {
  removeAllListeners(): void
}

const onSpawn = createRequire(import.meta.url)('process-on-spawn') as ProcessOnSpawn
onSpawn.removeAllListeners()
const ofRunner = /"?--import=\S*processinfo\S*/
process.env.NODE_OPTIONS = (process.env.NODE_OPTIONS ?? '').replace(ofRunner, '').trim()
