/** The jobs of this directory. They run in the pool. */
export { inspectDirectories, namesIn } from './directory_report.js'
export { faultOfName, inspectStores } from './store_report.js'
