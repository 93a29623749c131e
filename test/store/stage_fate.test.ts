/** Tests that a stage that may hold a VM's only state cannot be discarded. */
import t from 'tap'
import { ChangingFate } from '../../dist/store/stage_fate.js'

t.test('a discard function from before the suspend request removes nothing after the request', async (t) => {
  let discarded = 0
  const fate = new ChangingFate(true, () => {
    discarded += 1
    return Promise.resolve()
  })
  const before = fate.now
  if (before.kind !== 'discardable') return t.fail('the stage is not discardable before the request')
  fate.aboutToSend()
  t.same(fate.now, { kind: 'holdsVm' })
  await before.discard()
  t.equal(discarded, 0)
  fate.makeDiscardable()
  await before.discard()
  t.equal(discarded, 1)
})

t.test('the stage of a live checkpoint stays discardable', (t) => {
  const fate = new ChangingFate(false, () => Promise.resolve())
  fate.aboutToSend()
  t.equal(fate.now.kind, 'discardable')
  t.end()
})
