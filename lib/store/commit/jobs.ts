/** The jobs of this directory. They run in the pool. */
export { abandonStage, createStage } from './begin.js'
export { commitStage, publishStage, prepareStage, flushMemory, flushStage, salvageStage } from './publish.js'
