/** Why a checkpoint did not go through the memory stage, in words. */
import t from 'tap'
import type { CreatedCheckpoint, DiskReason } from 'bhyve-checkpoint'
import { diskReasonText } from '../../dist/cli/checkpoint_text.js'

function text(diskReason?: DiskReason): string | undefined {
  return diskReasonText({ diskReason } as CreatedCheckpoint)
}

t.test('every reason has words of its own', async (t) => {
  const reasons: DiskReason[] = [
    'memory-size-unknown',
    'path-too-long',
    'memory-stage-full',
    'host-memory',
    'filled-up',
  ]
  const texts = reasons.map(text)
  for (const words of texts) t.match(words, /^written on the disk: [a-z' -]+/i)
  t.equal(new Set(texts).size, reasons.length)
  t.match(text('filled-up'), /the guest was frozen twice$/)
})

t.test('nothing is printed of a suspend, nor of a checkpoint that went through memory', async (t) => {
  t.equal(text('suspend'), undefined)
  t.equal(text(), undefined)
})
