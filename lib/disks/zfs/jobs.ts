/** The jobs of this directory that run in the pool's threads. */
export { inspectDataset, locateDisks } from './inspection.js'
