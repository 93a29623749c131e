/** Metadata that are expensive to parse. */
import t from 'tap'
import { parseMetadata } from '../../dist/checkpoint/metadata.js'

const MiB = 1024 * 1024

t.test('parseMetadata: is fast even for metadata that are made to be slow', async (t) => {
  t.match(parseMetadata(`{"${'\\"'.repeat(2 * MiB)}`), { problem: { code: 'metadata-incomplete' } })
  t.match(parseMetadata(`{${'"'.repeat(2 * MiB + 1)}`), { problem: { code: 'metadata-incomplete' } })
  t.match(parseMetadata('{"a":'.repeat(100_000)), { problem: { code: 'metadata-incomplete' } })
  t.match(parseMetadata('['.repeat(MiB)), { problem: { code: 'metadata-invalid' } })
})
