/** What this folder does in the pool's threads. */
export { readArguments } from './report.js'
