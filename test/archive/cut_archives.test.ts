/** An archive that is cut or changed anywhere: nothing is published, and nothing is left behind. */
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { CheckpointError, createClient } from 'bhyve-checkpoint'
import { ArchiveReader } from '../../dist/archive/archive_reader.js'
import { ByteSource } from '../../dist/archive/byte_source.js'
import { Cancellation } from '../../dist/base/cancellation.js'
import { start } from '../support/creating.js'
import { bytesOf, chunksOf, emptyStore, importError } from '../support/archives.js'
import { generator } from '../support/random.mjs'
import { scratch } from '../support/index.js'

/** Of the reader alone, and of complete imports. `MUTATIONS=10000` tries more. */
const mutations = Number(process.env.MUTATIONS ?? '4000')
const imports = Math.ceil(mutations / 80)

async function smallArchive(t: Test): Promise<Buffer> {
  const bhyve = await start(t, { memoryBytes: 64 * 1024 })
  const client = createClient({ checkpointDirectory: scratch(t), runDirectory: bhyve.runDirectory })
  await client.createCheckpoint('vm1', { name: 'x', labels: { a: 'b' } })
  return bytesOf(client.exportCheckpoint('vm1', 'x'))
}

const limits = { '.ckp': 2 ** 46, '.ckp.kern': 2 ** 30, '.ckp.meta': 2 ** 20, '.ckp.manifest': 2 ** 26 }

/** Reads an archive, and returns how many bytes of it came before its end, and how many of them were data. */
async function read(archive: Buffer): Promise<{ data: number; end: number }> {
  using cancellation = new Cancellation({ doing: 'Reading' })
  const source = new ByteSource(chunksOf(archive, 65_536), cancellation)
  const reader = new ArchiveReader(source, limits)
  let data = 0
  let end = 0
  for (let file = await reader.next(); file !== undefined; file = await reader.next()) {
    await reader.content(file, (_offset, bytes) => {
      data += bytes.length
    })
    end = source.offset
  }
  return { data, end }
}

void t.test('a cut at every 1,000th byte', async (t) => {
  const archive = await smallArchive(t)
  const { client, root, left } = emptyStore(t)
  const { end } = await read(archive)
  let cuts = 0
  for (let at = 0; at <= end; at += 1000) {
    const error = await importError(client, archive.subarray(0, at))
    if (error.code !== 'ERR_ARCHIVE_INVALID' || left().length > 0)
      t.fail(`cut at ${at}: ${error.code}, ${left().join(' ')}`)
    cuts++
  }
  t.ok(cuts > 90, `${cuts} cuts`)
  t.equal((await client.importCheckpoint('vm1', undefined, chunksOf(archive))).name, 'x', 'the whole archive')
  const manifest = path.join(root, 'vm1/x.ckp.manifest')
  const before = fs.readFileSync(manifest)
  await importError(client, archive.subarray(0, end))
  t.ok(fs.readFileSync(manifest).equals(before), 'the checkpoint that exists is unchanged')
})

/** Changes bytes of headers and maps, which begin at full blocks, or moves blocks. */
function mutated(archive: Buffer, random: () => number): Buffer {
  const below = (limit: number): number => Math.floor(random() * limit)
  const block = 512 * below(archive.length / 512)
  const other = 512 * below(archive.length / 512)
  const changed = Buffer.from(archive)
  const at = random() < 0.8 ? 512 * below(12) : block
  switch (below(6)) {
    case 0:
      for (let count = 1 + below(4); count > 0; count--) changed[at + below(512)] = below(256)
      return changed
    case 1:
      return withChecksum(changed, at, () => changed.write(String(below(8)), at + 124 + below(11)))
    case 2:
      return withChecksum(changed, at, () => changed.writeUInt8(0x30 + below(10), at + 156))
    case 3:
      return Buffer.concat([changed.subarray(0, block), changed.subarray(block + 512)])
    case 4:
      return Buffer.concat([
        changed.subarray(0, block),
        changed.subarray(other, other + 512),
        changed.subarray(block),
      ])
    default: {
      const digit = changed.indexOf(String(below(10)), at)
      if (digit !== -1) changed.write(String(below(10)), digit)
      return changed
    }
  }
}

/** So that the change is not found by the checksum of the header. */
function withChecksum(archive: Buffer, at: number, change: () => void): Buffer {
  change()
  archive.fill(' ', at + 148, at + 156)
  const sum = archive.subarray(at, at + 512).reduce((total, byte) => total + byte, 0)
  archive.write(`${sum.toString(8).padStart(6, '0')}\0 `, at + 148)
  return archive
}

void t.test(`${mutations} changed archives, read`, async (t) => {
  const archive = await smallArchive(t)
  const random = generator(1)
  const outcomes = { read: 0, rejected: 0 }
  for (let run = 0; run < mutations; run++) {
    const changed = mutated(archive, random)
    try {
      const { data } = await read(changed)
      if (data > changed.length) t.fail(`run ${run}: ${data} bytes of ${changed.length}`)
      outcomes.read++
    } catch (error) {
      if (!(error instanceof CheckpointError) || error.code !== 'ERR_ARCHIVE_INVALID')
        t.fail(`run ${run}: ${String(error)}`)
      outcomes.rejected++
    }
  }
  t.ok(outcomes.read > 0 && outcomes.rejected > 0, JSON.stringify(outcomes))
})

void t.test(`${imports} changed archives, imported`, async (t) => {
  const archive = await smallArchive(t)
  const random = generator(2)
  const { client, left } = emptyStore(t)
  const outcomes = { imported: 0, rejected: 0 }
  for (let run = 0; run < imports; run++) {
    const changed = mutated(archive, random)
    try {
      const { name } = await client.importCheckpoint('vm1', undefined, chunksOf(changed, 65_536), {
        fsync: false,
      })
      const { ok } = await client.verifyCheckpoint('vm1', name, { depth: 'content' })
      t.ok(ok, `run ${run}: what was published is intact`)
      await client.destroyAll('vm1')
      await client.idle()
      outcomes.imported++
    } catch (error) {
      if (!(error instanceof CheckpointError) || error.code !== 'ERR_ARCHIVE_INVALID')
        t.fail(`run ${run}: ${String(error)}`)
      outcomes.rejected++
    }
    if (left().length > 0) t.fail(`run ${run}: ${left().join(' ')} is left`)
  }
  t.ok(outcomes.rejected > 0, JSON.stringify(outcomes))
})
