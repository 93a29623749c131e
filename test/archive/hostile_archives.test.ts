/** Archives that are not the archive of one checkpoint: nothing is published, and nothing is left behind. */
import fs from 'node:fs'
import path from 'node:path'
import zlib from 'node:zlib'
import t, { type Test } from 'tap'
import {
  checkpointFiles,
  emptyStore,
  endOfArchive,
  entry,
  importError,
  pax,
  paxRecord,
  plainArchive,
  sparse,
} from '../support/archives.js'
import { scratch } from '../support/index.js'

type Files = ReturnType<typeof checkpointFiles>
const KiB = 1024
const two63 = '9223372036854775808'
const gnuMagic = 'ustar  \0'
const version10 = { 'GNU.sparse.major': '1', 'GNU.sparse.minor': '0', 'GNU.sparse.name': 'x.ckp' }

/** Archives by what is wrong with them, and what the message says. */
const hostile: Record<string, { make: (files: Files, t: Test) => Buffer[]; says: RegExp }> = {
  'a hard link': {
    make: (files) => [
      ...plainArchive(files),
      entry({ name: 'x.ckp.manifest', type: '1', linkName: '/etc/passwd' }),
    ],
    says: /"x\.ckp\.manifest" is a hard link/,
  },
  'a symbolic link for the RAM': {
    make: ({ meta, kern }) => [
      entry({ name: 'x.ckp.meta', data: meta }),
      entry({ name: 'x.ckp.kern', data: kern }),
      entry({ name: 'x.ckp', type: '2', linkName: '/etc/passwd' }),
    ],
    says: /"x\.ckp" is a symbolic link/,
  },
  'a device': { make: () => [entry({ name: 'x.ckp', type: '3' })], says: /is a device/ },
  'a FIFO': { make: () => [entry({ name: 'x.ckp', type: '6' })], says: /is a FIFO/ },
  'a directory': { make: () => [entry({ name: './', type: '5' })], says: /is a directory/ },
  'an unknown type': { make: () => [entry({ name: 'x.ckp', type: 'Z' })], says: /an entry of type "Z"/ },
  'a global pax header': {
    make: () => [entry({ name: 'g', type: 'g', data: Buffer.from(paxRecord('size', '1')) })],
    says: /type "g"/,
  },
  'a path that leads up': {
    make: ({ meta }) => [entry({ name: '../x.ckp.meta', data: meta })],
    says: /not the name of a checkpoint file/,
  },
  'an absolute path': {
    make: ({ meta }) => [entry({ name: '/tmp/x.ckp.meta', data: meta })],
    says: /not the name of a checkpoint file/,
  },
  'a path in a directory': {
    make: ({ meta }) => [entry({ name: 'vm1/x.ckp.meta', data: meta })],
    says: /not the name of a checkpoint file/,
  },
  'a path in a pax header': {
    make: ({ meta }) => [pax({ path: '../../x.ckp.meta' }), entry({ name: 'x.ckp.meta', data: meta })],
    says: /not the name of a checkpoint file/,
  },
  'a name without a checkpoint': {
    make: ({ meta }) => [entry({ name: '.ckp.meta', data: meta })],
    says: /not the name of a checkpoint file/,
  },
  'another file': {
    make: () => [entry({ name: 'README', data: Buffer.from('hello') })],
    says: /not the name of a checkpoint file/,
  },
  'files of two checkpoints': {
    make: (files) => [...plainArchive(files), entry({ name: 'y.ckp', data: files.memory })],
    says: /two checkpoints, "x" and "y"/,
  },
  'a file twice': {
    make: (files) => [...plainArchive(files), ...plainArchive(files)],
    says: /"x\.ckp\.meta" twice/,
  },
  'no kernel state': {
    make: (files) => [...plainArchive(files).filter((_, index) => index !== 1), endOfArchive],
    says: /no file \*\.ckp\.kern/,
  },
  'no RAM': {
    make: (files) => [...plainArchive(files).slice(0, 2), endOfArchive],
    says: /no file \*\.ckp\b/,
  },
  'RAM of another size than the metadata says': {
    make: (files) => [...plainArchive({ ...files, memory: Buffer.alloc(4096) }), endOfArchive],
    says: /the RAM file has 4096 bytes, but the VM has 8192/,
  },
  'empty RAM': {
    make: (files) => [...plainArchive({ ...files, memory: Buffer.alloc(0) }), endOfArchive],
    says: /the RAM file is empty/,
  },
  'a manifest that is not JSON': {
    make: (files) => [
      entry({ name: 'x.ckp.manifest', data: Buffer.from('{') }),
      ...plainArchive(files),
      endOfArchive,
    ],
    says: /manifest is not valid/,
  },
  'metadata larger than any': {
    make: () => [entry({ name: 'x.ckp.meta', size: 2 * 1024 * KiB })],
    says: /more than such a file can have/,
  },
  'a size of 2^63': {
    make: () => [pax({ size: two63 }), entry({ name: 'x.ckp' })],
    says: /is not a number of bytes/,
  },
  'a size of 2^53 in binary': {
    make: () => [
      entry({ name: 'x.ckp', extra: [[124, Buffer.from([0x80, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0])]] }),
    ],
    says: /a number that is too large/,
  },
  'a negative size': {
    make: () => [entry({ name: 'x.ckp', extra: [[124, Buffer.alloc(12, 0xff)]] })],
    says: /malformed number/,
  },
  'more RAM than any host has': {
    make: () => [pax({ size: String(2 ** 50) }), entry({ name: 'x.ckp' })],
    says: /more than such a file can have/,
  },
  'a file that is longer than the archive': {
    make: ({ meta }) => [entry({ name: 'x.ckp.meta', data: meta, size: meta.length + KiB })],
    says: /is not a tar archive|too early|header is damaged/,
  },
  'a damaged checksum': {
    make: ({ meta }) => {
      const bytes = entry({ name: 'x.ckp.meta', data: meta })
      bytes[0] = 0x79
      return [bytes]
    },
    says: /not a tar archive, or a header is damaged/,
  },
  text: { make: () => [Buffer.alloc(4 * KiB, 'no archive at all. ')], says: /not a tar archive/ },
  'a flood of pax records': {
    make: () => [
      entry({ name: 'p', type: 'x', data: Buffer.from(paxRecord('comment', 'a').repeat(100_000)) }),
    ],
    says: /a header of \d+ bytes/,
  },
  'a flood of pax headers': {
    make: () => Array.from({ length: 1000 }, () => pax({ comment: 'again' })),
    says: /two pax headers/,
  },
  'a malformed pax record': {
    make: () => [entry({ name: 'p', type: 'x', data: Buffer.from('999 path=x.ckp\n') })],
    says: /malformed pax record/,
  },
  'a pax record with a length of 0': {
    make: () => [entry({ name: 'p', type: 'x', data: Buffer.from('0 path=x.ckp\n') })],
    says: /malformed pax record/,
  },
  'pax records that are followed by zeros': {
    make: () => [
      entry({
        name: 'p',
        type: 'x',
        data: Buffer.concat([Buffer.from(paxRecord('comment', 'a')), Buffer.alloc(400)]),
      }),
    ],
    says: /malformed pax record/,
  },
  'a pax header without a file': {
    make: () => [pax({ path: 'x.ckp' }), endOfArchive],
    says: /ends after a pax header/,
  },
  'a map with too many ranges': {
    make: () => [sparse('x.ckp', KiB, [2 ** 40], Buffer.alloc(0))],
    says: /more than 1048576/,
  },
  'a map that never ends': {
    make: () => [sparse('x.ckp', KiB, ['1'.repeat(4096)], Buffer.alloc(0))],
    says: /is not a number of bytes/,
  },
  'a map that is longer than its entry': {
    make: () => [sparse('x.ckp', KiB, [100, 0], Buffer.alloc(0))],
    says: /longer than its entry|not a number/,
  },
  'a map with overlapping ranges': {
    make: () => [sparse('x.ckp', 4 * KiB, [2, 0, 1024, 512, 512], Buffer.alloc(1536))],
    says: /overlap or are not in order/,
  },
  'a map with decreasing ranges': {
    make: () => [sparse('x.ckp', 4 * KiB, [2, 2048, 512, 0, 512], Buffer.alloc(KiB))],
    says: /overlap or are not in order/,
  },
  'a map with a range past the end': {
    make: () => [sparse('x.ckp', KiB, [1, 512, KiB], Buffer.alloc(KiB))],
    says: /after the end of the file/,
  },
  'a map with 2^63': {
    make: () => [sparse('x.ckp', KiB, [1, two63, 512], Buffer.alloc(512))],
    says: /is not a number of bytes/,
  },
  'a map with text': {
    make: () => [sparse('x.ckp', KiB, [1, '0x10', 512], Buffer.alloc(512))],
    says: /is not a number of bytes/,
  },
  'a map with less data than its entry': {
    make: () => [sparse('x.ckp', KiB, [1, 0, 512], Buffer.alloc(KiB))],
    says: /does not agree with the size/,
  },
  'a real size of 2^63': {
    make: () => [sparse('x.ckp', two63, [0], Buffer.alloc(0))],
    says: /is not a number of bytes/,
  },
  'an older sparse format': {
    make: () => [
      pax({ 'GNU.sparse.map': '0,512', 'GNU.sparse.size': '512' }),
      entry({ name: 'x.ckp', data: Buffer.alloc(512) }),
    ],
    says: /only version 1\.0/,
  },
  'a map of type S that never ends': {
    make: () => [
      entry({
        name: 'x.ckp',
        type: 'S',
        extra: [
          [257, gnuMagic],
          [482, '\x01'],
          [483, '00000002000\0'],
        ],
      }),
      ...Array.from({ length: 100 }, () => Buffer.alloc(512, 1)),
    ],
    says: /malformed number|too early/,
  },
  'a map of type S that is continued, as GNU tar reads it': {
    make: () => [
      entry({
        name: 'x.ckp',
        type: 'S',
        extra: [
          [257, gnuMagic],
          [386, '00000000000\x0000000001000\0'],
          [482, '1'],
          [483, '00000001000\0'],
        ],
      }),
      Buffer.alloc(512, '9'),
    ],
    says: /malformed number/,
  },
  'a sparse file of type S in the format of POSIX': {
    make: () => [entry({ name: 'x.ckp', type: 'S', extra: [[483, '00000001000\0']] })],
    says: /not in the format of GNU tar/,
  },
  'a sparse file of type S with a pax header': {
    make: () => [
      pax({ comment: 'a' }),
      entry({
        name: 'x.ckp',
        type: 'S',
        extra: [
          [257, gnuMagic],
          [483, '00000001000\0'],
        ],
      }),
    ],
    says: /not in the format of GNU tar/,
  },
  'a range before the last one that is not in full blocks': {
    make: () => [sparse('x.ckp', 2 * KiB, [2, 0, 500, KiB, 524], Buffer.alloc(KiB))],
    says: /no full blocks/,
  },
  'sizes of two sparse formats': {
    make: () => [
      pax({ ...version10, 'GNU.sparse.realsize': '0', 'GNU.sparse.size': '512' }),
      entry({ name: 'x.ckp', data: Buffer.from('0\n'.padEnd(512, '\0')) }),
    ],
    says: /only version 1\.0/,
  },
  'the size of another sparse format': {
    make: () => [pax({ 'SCHILY.realsize': '512' }), entry({ name: 'x.ckp' })],
    says: /only version 1\.0/,
  },
  'a size that is not all digits': {
    make: () => [entry({ name: 'x.ckp', size: '18' })],
    says: /malformed number/,
  },
  'a format that other programs read in another way': {
    make: () => [entry({ name: 'x.ckp', extra: [[257, 'ustar\0  ']] })],
    says: /a format that is not known/,
  },
  'a map of type S that goes back': {
    make: () => [
      entry({
        name: 'x.ckp',
        type: 'S',
        extra: [
          [257, gnuMagic],
          [386, '00000001000\x0000000001000\x0000000000000\x0000000001000\0'],
          [483, '00000010000\0'],
        ],
      }),
    ],
    says: /overlap or are not in order/,
  },
  'something after the end': {
    make: (files) => [...plainArchive(files), endOfArchive, Buffer.from('more')],
    says: /something follows its end/,
  },
  'no entry at all': { make: () => [endOfArchive], says: /it is empty/ },
  nothing: { make: () => [], says: /ends after 0 bytes/ },
  'a gzip stream that is cut': {
    make: (files) => [zlib.gzipSync(Buffer.concat(plainArchive(files))).subarray(0, -20)],
    says: /cannot be decompressed/,
  },
  'a gzip bomb of headers': {
    make: () => [
      zlib.gzipSync(Buffer.concat([entry({ name: 'x.ckp.meta', size: 0 }), Buffer.alloc(128 * KiB * KiB)])),
    ],
    says: /something follows its end/,
  },
  'a gzip bomb in the metadata': {
    make: () => [zlib.gzipSync(entry({ name: 'x.ckp.meta', data: Buffer.alloc(64 * KiB * KiB) }))],
    says: /more than such a file can have/,
  },
}

for (const [what, { make, says }] of Object.entries(hostile)) {
  void t.test(`rejects ${what}`, async (t) => {
    const { client, left } = emptyStore(t)
    const error = await importError(client, Buffer.concat(make(checkpointFiles(t), t)))
    t.match(
      { code: error.code, message: error.message, vm: error.vm },
      { code: 'ERR_ARCHIVE_INVALID', message: says, vm: 'vm1' },
    )
    t.strictSame(left(), [], 'nothing is left')
    t.strictSame(client.inFlight(), [])
  })
}

void t.test('rejects RAM that does not fit on the disk before the RAM comes', async (t) => {
  const { client, left } = emptyStore(t)
  const { meta, kern } = checkpointFiles(t)
  const [first = Buffer.alloc(0), second = Buffer.alloc(0)] = plainArchive({
    meta,
    kern,
    memory: Buffer.alloc(0),
  })
  const memory = Buffer.concat([pax({ size: String(2 ** 45) }), entry({ name: 'x.ckp' })])
  const error = await importError(client, Buffer.concat([first, second, memory]))
  t.match(
    { code: error.code, requiredBytes: error.requiredBytes },
    { code: 'ERR_NO_SPACE', requiredBytes: 2 ** 45 + 64 * KiB * KiB },
  )
  t.strictSame(left(), [])
})

void t.test('a name that exists is unchanged after a failed import', async (t) => {
  const { client, root } = emptyStore(t)
  const good = plainArchive(checkpointFiles(t))
  const { id } = await client.importCheckpoint(
    'vm1',
    undefined,
    asSource(Buffer.concat([...good, endOfArchive])),
  )
  await importError(client, Buffer.concat(good).subarray(0, -KiB))
  t.equal((await client.getCheckpoint('vm1', 'x')).id, id)
  t.strictSame(fs.readdirSync(path.join(root, 'vm1')).sort(), [
    '.staging',
    'x.ckp',
    'x.ckp.kern',
    'x.ckp.manifest',
    'x.ckp.meta',
  ])
})

void t.test('a link instead of a stage is not followed', async (t) => {
  const { client, root } = emptyStore(t)
  const elsewhere = scratch(t)
  fs.mkdirSync(path.join(root, 'vm1'), { recursive: true })
  fs.symlinkSync(elsewhere, path.join(root, 'vm1/.staging'))
  await t.rejects(
    client.importCheckpoint('vm1', undefined, asSource(Buffer.concat(plainArchive(checkpointFiles(t))))),
  )
  t.strictSame(fs.readdirSync(elsewhere), [])
})

async function* asSource(bytes: Buffer): AsyncGenerator<Buffer> {
  yield bytes
}
