/** Metadata that cost whoever reads them. */
import t from 'tap'
import { parseMetadata } from '../../dist/checkpoint/metadata.js'

const MiB = 1024 * 1024

t.test('metadata made to be slow to read are not', async (t) => {
  t.match(parseMetadata(`{"${'\\"'.repeat(2 * MiB)}`), { problem: { code: 'metadata-incomplete' } })
  t.match(parseMetadata(`{${'"'.repeat(2 * MiB + 1)}`), { problem: { code: 'metadata-incomplete' } })
  t.match(parseMetadata('{"a":'.repeat(100_000)), { problem: { code: 'metadata-incomplete' } })
  t.match(parseMetadata('['.repeat(MiB)), { problem: { code: 'metadata-invalid' } })
})
