/** What this folder does in the pool's threads. */
export { collectStage, isUntouched } from './collect.js'
export { giveIn, reopenIn } from './inbox.js'
export { recordWriter } from './intent.js'
export { dropOutrun } from './orphans.js'
export { beginPass, endPass, passSlice, passWhole } from './memory_pass.js'
export { emptyAllRemoved, emptyRemoved } from './removed.js'
export { savedSoFar } from './saved.js'
export { dropPromise, promisedSpace, promiseSpace, reserveSpace } from './space.js'
