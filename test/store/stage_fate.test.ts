/** A stage that may hold a VM's only state cannot be discarded. */
import t from 'tap'
import { ChangingFate } from '../../dist/store/stage_fate.js'

t.test('a discard obtained before the suspend was sent removes nothing afterwards', async (t) => {
  let discarded = 0
  const fate = new ChangingFate(true, () => {
    discarded += 1
    return Promise.resolve()
  })
  const before = fate.now
  if (before.kind !== 'discardable') return t.fail('discardable until the request is sent')
  fate.requestSent()
  t.same(fate.now, { kind: 'holdsVm' })
  await before.discard()
  t.equal(discarded, 0)
  fate.vmStillRuns()
  await before.discard()
  t.equal(discarded, 1)
})

t.test('the stage of a live checkpoint stays discardable', (t) => {
  const fate = new ChangingFate(false, () => Promise.resolve())
  fate.requestSent()
  t.equal(fate.now.kind, 'discardable')
  t.end()
})
