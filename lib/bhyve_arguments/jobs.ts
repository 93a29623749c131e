/** The jobs of this directory that run in the pool's threads. */
export { readArguments } from './report.js'
