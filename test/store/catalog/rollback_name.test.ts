/** The name of the rollback record. */
import t from 'tap'
import { freshRollbackName, rollbackName } from '../../../dist/store/paths.js'

t.test('rollback record: no release mistakes it for a stage, which recovery removes', (t) => {
  // This pattern has been that of a stage's id since the first release.
  for (const name of [rollbackName, freshRollbackName]) t.notMatch(name, /^[0-9a-z]{1,12}$/)
  t.end()
})
