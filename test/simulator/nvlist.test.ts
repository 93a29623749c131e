/** Packed nvlists: which ones libnv accepts and rejects, and which bytes upstream writes. */
import t from 'tap'
import { decodeNvlist, NvType, type NvPair } from '../../dist/simulator/nvlist.js'
import { encodeNvlist } from '../../dist/simulator/nvlist_encoder.js'
import '../support/plain_children.js'
import {
  golden,
  goldenSuccess,
  goldenUnknownCommand,
  payloadOf,
  pair,
  message,
  suspend,
  fddir,
  goodPairs,
  rejectedNvlists,
} from '../support/simulating.js'

// These tests mostly wait for processes to start.
t.jobs = 4
t.setTimeout(120_000)

t.test("nvlists: upstream's lists decode and encode to the same bytes", async (t) => {
  for (const request of golden.requests.filter(({ dialect }) => dialect !== 'struct')) {
    const payload = payloadOf(request)
    const pairs = decodeNvlist(payload, request.fds)
    t.ok(pairs, request.description)
    t.same(encodeNvlist(pairs ?? []), payload, request.description)
    t.equal(pairs?.find(({ name }) => name === 'filename')?.value, request.filename)
  }
  t.same(encodeNvlist([]), goldenSuccess)
  const error = { name: 'error', type: NvType.string, value: "command 'ping' not found" }
  t.same(encodeNvlist([error]), goldenUnknownCommand)
})

t.test('nvlists: a value of each type encodes and decodes to the same value', async (t) => {
  const inner: NvPair[] = [
    { name: 'flag', type: NvType.bool, value: true },
    {
      name: 'deeper',
      type: NvType.nvlist,
      value: [{ name: 'n', type: NvType.number, value: 2n ** 64n - 1n }],
    },
  ]
  const pairs: NvPair[] = [
    { name: 'nothing', type: NvType.null, value: null },
    { name: 'number', type: NvType.number, value: 7n },
    { name: 'text', type: NvType.string, value: 'снимок' },
    { name: 'list', type: NvType.nvlist, value: inner },
    { name: 'empty list', type: NvType.nvlist, value: [] },
    { name: 'directory', type: NvType.descriptor, value: 1n },
    { name: 'bytes', type: NvType.binary, value: Buffer.from([0, 1, 2]) },
    { name: 'flags', type: NvType.boolArray, value: [true, false] },
    { name: 'numbers', type: NvType.numberArray, value: [1n, 2n] },
    { name: 'texts', type: NvType.stringArray, value: ['', 'a', 'b c'] },
    { name: 'lists', type: NvType.nvlistArray, value: [inner, [], inner] },
    { name: 'descriptors', type: NvType.descriptorArray, value: [0n, 1n] },
    { name: 'last', type: NvType.bool, value: false },
  ]
  t.same(decodeNvlist(encodeNvlist(pairs), 3), pairs)
})

t.test('nvlists: the decoder accepts unusual lists that libnv accepts', async (t) => {
  const big = Buffer.alloc(19 + 19 + 2 + 8)
  big.set([0x6c, 0, 0x80])
  big.writeBigUInt64BE(29n, 11)
  big.set([NvType.number, 0, 2], 19)
  big.writeBigUInt64BE(8n, 22)
  big.write('n', 38)
  big.writeBigUInt64BE(5n, 40)
  t.same(decodeNvlist(big, 0), [{ name: 'n', type: NvType.number, value: 5n }], 'big-endian')
  big.set([NvType.numberArray], 19)
  big.writeBigUInt64BE(1n, 30)
  t.same(decodeNvlist(big, 0)?.[0]?.value, [5n], 'big-endian array')

  const scalarItems = message([pair(NvType.bool, 'b', Buffer.from([1]), { items: 9n })])
  t.ok(decodeNvlist(scalarItems, 1), 'a number of items for a scalar')
  t.ok(decodeNvlist(message([fddir], { descriptors: 1n }), 3), 'fewer descriptors announced than sent')

  const child = message([pair(NvType.bool, 'b', Buffer.from([1]))])
  t.same(
    decodeNvlist(message([pair(NvType.nvlist, 'l', child)]), 1)?.[0]?.value,
    [{ name: 'b', type: NvType.bool, value: true }],
    'a nested list that is not closed',
  )
  const duplicates = message([suspend, suspend], { flags: 0x02 })
  t.ok(
    decodeNvlist(message([pair(NvType.nvlist, 'l', duplicates)]), 1),
    'duplicate names in a nested list that allows them',
  )
})

t.test('nvlists: the decoder rejects invalid lists, like libnv', async (t) => {
  t.ok(decodeNvlist(message(goodPairs), 1), 'the list before the changes is valid')
  for (const { why, bytes } of rejectedNvlists) t.equal(decodeNvlist(bytes, 1), undefined, why)
  t.equal(decodeNvlist(message(goodPairs, { size: 1n }), 1), undefined, 'size too small')
  t.equal(decodeNvlist(message(goodPairs, { size: 10_000n }), 1), undefined, 'size too large')
  t.equal(
    decodeNvlist(message(goodPairs, { descriptors: 2n }), 1),
    undefined,
    'more descriptors announced than sent',
  )
  const good = message(goodPairs)
  for (let length = 0; length < good.length; length++) {
    if (decodeNvlist(good.subarray(0, length), 1) !== undefined) t.fail(`cut to ${String(length)} bytes`)
  }
})
