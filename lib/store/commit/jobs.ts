/** What this folder does in the pool's threads. */
export { abandonStage, createStage } from './begin.js'
export { commitStage, prepareStage, flushStage, salvageStage } from './publish.js'
