/** A process with few descriptors: what it may open is counted, calls wait for each other, and errors name the cause. */
import fs from 'node:fs'
import t from 'tap'
import { loadNative } from '../dist/native.js'

const native = loadNative()

t.test('the limit and what is open are counted', async (t) => {
  const before = native.openDescriptors() as number
  t.ok(before > 2, `${before} open`)
  t.ok((native.descriptorLimit() as number) > before)
  const one = fs.openSync('/dev/null', 'r')
  t.equal(native.openDescriptors(), before + 1)
  fs.closeSync(one)
  t.equal(native.openDescriptors(), before)
})
