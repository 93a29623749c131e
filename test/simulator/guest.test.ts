/** The metadata and the RAM of a simulated guest. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { deflateRawSync } from 'node:zlib'
import t from 'tap'
import { SyntheticMemory } from '../../dist/simulator/guest.js'
import { MetadataWriter, type MetadataShape } from '../../dist/simulator/metadata_writer.js'
import '../support/plain_children.js'
import { goldenDirectory, mebibyte, memoryBytes, type GoldenMetadata } from '../support/simulating.js'

// These tests mostly wait for processes to start.
t.jobs = 4
t.setTimeout(120_000)

function writeMetadata(shape: MetadataShape, data: GoldenMetadata): MetadataWriter {
  const writer = new MetadataWriter(shape)
  const { ncpus, vmname, memsize, memflags } = data['basic metadata']
  writer.basic({ cpus: ncpus, vm: vmname, memoryBytes: memsize, memoryFlags: memflags })
  writer.openStructures()
  const structures = [
    ...(data.kern_structs ?? []).map((entry) => ({ ...entry, name: entry.device })),
    ...(data.structs ?? []).map((entry) => ({ ...entry, name: entry.debug_name })),
  ]
  for (const { name, size, file_offset } of structures) writer.structure({ name, size, offset: file_offset })
  return writer
}

t.test('metadata: the writer produces the same bytes as upstream', async (t) => {
  const shapes = { descriptor: 'current', path: 'old' } as const
  for (const [file, shape] of Object.entries(shapes)) {
    const text = readFileSync(join(goldenDirectory, 'meta', `${file}.meta`), 'utf8')
    const data = JSON.parse(text) as GoldenMetadata
    const writer = writeMetadata(shape, data)
    writer.closeList()
    writer.openDevices()
    for (const { device, snapshot_req, size, file_offset } of data.devices) {
      writer.device({ name: device ?? snapshot_req ?? '', size, offset: file_offset })
    }
    writer.closeList()
    writer.finish()
    t.equal(writer.text, text, file)
  }
  const path = readFileSync(join(goldenDirectory, 'meta', 'path.meta'), 'utf8')
  const { structs } = JSON.parse(writeMetadata('oldest', JSON.parse(path) as GoldenMetadata).text + ']}') as {
    structs: { debug_name: string; snapshot_req: number }[]
  }
  t.same(
    structs.map(({ debug_name, snapshot_req }) => [debug_name, snapshot_req]),
    [
      ...[
        ['vhpet', 5],
        ['vm', 2],
        ['vmx', 0],
        ['vioapic', 1],
        ['vlapic', 3],
        ['vmcx', 6],
      ],
      ...[
        ['vatpit', 9],
        ['vatpic', 8],
        ['vpmtmr', 10],
        ['vrtc', 11],
      ],
    ],
    'the request numbers of FreeBSD 13.0',
  )
  const failed = readFileSync(join(goldenDirectory, 'meta', 'failed-at-kernel-structure.meta'), 'utf8')
  const data = JSON.parse(`${failed}],"devices":[]}`) as GoldenMetadata
  t.equal(writeMetadata('current', data).text, failed, 'a failed run')
  t.equal(new MetadataWriter('current').text, '', 'an empty document')
})

t.test(
  'RAM: the requested fraction is zero, the rest is incompressible, and reads are repeatable',
  async (t) => {
    const pages = (memoryBytes + 4096) / 4096
    const ram = (zeroFraction: number, zeroLayout: 'runs' | 'pages' = 'runs') => {
      return { memoryBytes, zeroFraction, zeroLayout }
    }
    for (const fraction of [0, 0.25, 0.5, 0.9, 1]) {
      const memory = new SyntheticMemory('vm0', { ...ram(fraction), memoryBytes: memoryBytes + 4096 })
      const complete = Buffer.from(memory.read(0, memory.size))
      const zeros = Array.from({ length: pages }, (_, page) =>
        complete.subarray(page * 4096, (page + 1) * 4096),
      )
      t.equal(zeros.filter((page) => page.every((byte) => byte === 0)).length, Math.floor(pages * fraction))
      const slices = [0, 1, 2].map((i) => Buffer.from(memory.read(i * mebibyte, mebibyte)))
      t.ok(Buffer.concat(slices).equals(complete.subarray(0, 3 * mebibyte)), 'slices have the same content')
    }
    const dense = Buffer.from(new SyntheticMemory('vm0', ram(0)).read(0, memoryBytes))
    t.ok(deflateRawSync(dense).length > memoryBytes * 0.99, 'incompressible')
    const other = new SyntheticMemory('vm1', ram(0)).read(0, memoryBytes)
    const page = (bytes: Buffer, index: number) =>
      bytes.subarray(index * 4096, (index + 1) * 4096).toString('base64')
    const all = [dense, other].flatMap((bytes) =>
      Array.from({ length: memoryBytes / 4096 }, (_, i) => page(bytes, i)),
    )
    t.equal(new Set(all).size, all.length, 'all pages of all VMs differ')
    const runs = new SyntheticMemory('vm0', ram(0.5)).read(0, mebibyte)
    t.ok(
      runs.subarray(mebibyte / 2).every((byte) => byte === 0),
      'runs: the zeros are contiguous',
    )
    const alternating = new SyntheticMemory('vm0', ram(0.5, 'pages')).read(0, 4 * 4096)
    const isZero = [0, 1, 2, 3].map((i) =>
      alternating.subarray(i * 4096, (i + 1) * 4096).every((byte) => byte === 0),
    )
    t.strictSame(isZero, [false, true, false, true], 'pages: the zeros are single pages')
  },
)
