/** The jobs of this directory that run in the pool's threads. */
export { forkArguments } from './fork.js'
export { recordable, recordableOfProcess } from './recording.js'
export { readArguments } from './report.js'
