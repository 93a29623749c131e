/** The name of the rollback record. */
import t from 'tap'
import { CheckpointError } from 'bhyve-checkpoint'
import { freshRollbackName, rollbackName } from '../../../dist/store/paths.js'
import { retryWhileBusy } from '../../../dist/store/retry_while_busy.js'
import { rejection } from '../../support/index.js'

t.test('rollback record: no release mistakes it for a stage, which recovery removes', (t) => {
  // This pattern has been that of a stage's id since the first release.
  for (const name of [rollbackName, freshRollbackName]) t.notMatch(name, /^[0-9a-z]{1,12}$/)
  t.end()
})

t.test('rollback record: no call waits for an interrupted rollback, which no process finishes', async (t) => {
  let attempts = 0
  const path = `/c/vm1/.staging/${rollbackName}`
  const attempt = async (): Promise<void> => {
    attempts++
    throw new CheckpointError('ERR_CHECKPOINT_BUSY', 'It is half done', { path, retryable: false })
  }
  t.match(await rejection(retryWhileBusy(attempt)), { code: 'ERR_CHECKPOINT_BUSY' })
  t.equal(attempts, 1)
})
