/** Sources that are not an archive in a well-behaved stream: the call ends, the source is released, nothing is left. */
import { PassThrough, Readable } from 'node:stream'
import { once } from 'node:events'
import zlib from 'node:zlib'
import t, { type Test } from 'tap'
import { chunksOf, checkpointFiles, emptyStore, endOfArchive, plainArchive } from '../support/archives.js'

const gzipStart = Buffer.from([0x1f, 0x8b, 8, 0])
const noStart = Buffer.alloc(0)

const wrong: Record<string, unknown> = { 'a string': 'text', 'a number': 7, null: null, 'an array': [1, 2] }

for (const [what, chunk] of Object.entries(wrong))
  for (const start of [noStart, Buffer.alloc(100), gzipStart])
    void t.test(`${what} after ${start.length} bytes`, async (t) => {
      const { client, left } = emptyStore(t)
      const source = (async function* () {
        yield start
        yield chunk as Uint8Array
      })()
      await t.rejects(client.importCheckpoint('vm1', undefined, source), {
        code: 'ERR_INVALID_OPTION',
        message: /must yield Uint8Arrays/,
        vm: 'vm1',
      })
      t.strictSame(left(), [])
    })

void t.test('the error of a source is the cause', async (t) => {
  const { client, left } = emptyStore(t)
  const archive = Buffer.concat([...plainArchive(checkpointFiles(t)), endOfArchive])
  const lost = new Error('the connection was lost')
  const source = (async function* () {
    yield archive.subarray(0, 3000)
    throw lost
  })()
  await t.rejects(client.importCheckpoint('vm1', undefined, source), { code: 'ERR_SYSTEM', cause: lost })
  t.strictSame(left(), [])
})

void t.test('a source that yields nothing for ever can be cancelled', async (t) => {
  for (const start of [noStart, Buffer.alloc(100), gzipStart]) {
    const { client, left } = emptyStore(t)
    let chunks = 0
    const source = (async function* () {
      yield start
      // Ends at last, so that the test fails and does not hang.
      for (; chunks < 3_000_000; chunks++) yield Buffer.alloc(0)
    })()
    await t.rejects(client.importCheckpoint('vm1', undefined, source, { timeout: 20 }), {
      code: 'ERR_TIMEOUT',
    })
    await client.idle()
    const seen = chunks
    t.ok(seen < 3_000_000, 'the timer was not held up')
    await new Promise((resolve) => setImmediate(resolve))
    t.equal(chunks, seen, 'the source is not read any more')
    t.strictSame(left(), [])
  }
})

/** A stream that stays open, although what it has is not an archive. */
function openStream(bytes: Buffer): PassThrough {
  const stream = new PassThrough()
  stream.write(bytes)
  return stream
}

function flushed(bytes: Buffer): Buffer {
  return zlib.gzipSync(bytes, { finishFlush: zlib.constants.Z_SYNC_FLUSH })
}

void t.test('a stream whose archive is not valid is destroyed', async (t) => {
  const text = Buffer.alloc(4096, 'no archive')
  for (const bytes of [text, flushed(text)]) {
    const { client } = emptyStore(t)
    const stream = openStream(bytes)
    const closed = once(stream, 'close', { signal: AbortSignal.timeout(5000) })
    await t.rejects(client.importCheckpoint('vm1', undefined, stream), { code: 'ERR_ARCHIVE_INVALID' })
    await t.resolves(closed)
  }
})

void t.test('a stream that waits is destroyed after a cancel, at each step', async (t) => {
  const archive = Buffer.concat([...plainArchive(checkpointFiles(t)), endOfArchive])
  for (let at = 1; at < archive.length; at += 1500)
    for (const bytes of [archive.subarray(0, at), flushed(archive.subarray(0, at))]) {
      const { client, left } = emptyStore(t)
      const stream = openStream(bytes)
      const closed = once(stream, 'close', { signal: AbortSignal.timeout(5000) })
      await rejectsWhenDrained(t, stream, (signal) =>
        client.importCheckpoint('vm1', undefined, stream, { signal }),
      )
      await closed
      await client.idle()
      t.strictSame(left(), [], `${at} bytes`)
    }
})

/** Aborts the call when it has read everything that the stream has. */
async function rejectsWhenDrained(
  t: Test,
  stream: Readable,
  call: (signal: AbortSignal) => Promise<unknown>,
): Promise<void> {
  const controller = new AbortController()
  const rejected = t.rejects(call(controller.signal), { name: 'AbortError' })
  while (stream.readableLength > 0) await new Promise((resolve) => setImmediate(resolve))
  controller.abort()
  await rejected
}

void t.test(
  'a stream of an archive can be in chunks of one byte, with empty ones between them',
  async (t) => {
    const { client } = emptyStore(t)
    const archive = Buffer.concat([...plainArchive(checkpointFiles(t)), endOfArchive])
    const source = (async function* () {
      for await (const byte of chunksOf(archive.subarray(0, 1500), 1)) {
        yield byte
        yield Buffer.alloc(0)
      }
      yield archive.subarray(1500)
    })()
    t.equal((await client.importCheckpoint('vm1', undefined, source)).name, 'x')
  },
)
