// A second power failure, during recovery from a first one. Chooses states of the first failure that leave something to
// recover, and records that recovery like any other operation.
import fs from 'node:fs'
import path from 'node:path'
import { recordRecovery } from './record.mjs'
import { formatState, randomStates } from './states.mjs'

const mostTries = 10_000

/** Returns the names of the recordings. The checker treats them like operations. */
export async function recordAgain({ checker, directory, seed, count, operations, models, log }) {
  const names = Array.from({ length: count }, (_, index) => `again-${index}`)
  const missing = names.filter((name) => !fs.existsSync(path.join(directory, name, 'facts.json')))
  const states = worthwhile(checker, seed, operations, models)
  for (const name of missing) {
    const { value: state } = await states.next()
    if (state === undefined) return names.filter((one) => !missing.includes(one))
    const { bootId } = checker.recorded(state.operation)
    log(`recording ${name}: after ${formatState(state)}`)
    const fill = (store) => checker.judge.materialise(checker.tree(state), bootId, store)
    await recordRecovery(path.join(directory, name), formatState(state), fill)
  }
  return names
}

/** One state for each operation and model. Skips states that already break a rule. */
async function* worthwhile(checker, seed, operations, models) {
  const diskFor = (operation, model) => checker.disk(operation, model)
  const seen = new Set()
  for (const state of randomStates(seed, mostTries, operations, models, diskFor)) {
    const kind = `${state.operation} ${state.model}`
    const hasWork = checker.tree(state).some(({ path: file }) => file.startsWith('vm1/.staging/'))
    if (seen.has(kind) || !hasWork || (await checker.check(state)).length > 0) continue
    seen.add(kind)
    yield state
  }
}
