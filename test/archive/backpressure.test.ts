/** An export reads no faster than its consumer, and an import no faster than its files are written. */
import fs from 'node:fs'
import t from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { createClientIn } from '../../dist/client/client.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { start } from '../support/creating.js'
import { bytesOf, chunksOf } from '../support/archives.js'
import { inlinePool, scratch } from '../support/index.js'

const MiB = 1024 * 1024

/** Enough turns of the event loop, and of Node's threads, for everything that can go on without the other side. */
async function settle(): Promise<void> {
  for (let turn = 0; turn < 200; turn++) await new Promise((resolve) => setImmediate(resolve))
}

void t.test('an export waits for its consumer', async (t) => {
  const bhyve = await start(t, { memoryBytes: 16 * MiB, zeroFraction: 0 })
  const client = createClient({ checkpointDirectory: scratch(t), runDirectory: bhyve.runDirectory })
  await client.createCheckpoint('vm1')
  let read = 0
  const original = fs.read
  const counting = (...args: unknown[]): void => {
    read += args[3] as number
    ;(original as (...args: unknown[]) => void)(...args)
  }
  fs.read = counting as never
  t.teardown(() => {
    fs.read = original
  })
  const stream = client.exportCheckpoint('vm1', 'checkpoint')
  const chunks = stream[Symbol.asyncIterator]() as AsyncIterator<Buffer>
  let taken = 0
  while (taken < 4 * MiB) {
    const next = await chunks.next()
    taken += next.done === true ? 0 : next.value.length
  }
  await settle()
  t.ok(stream.readableLength <= 2 * MiB, `${stream.readableLength} bytes wait`)
  t.ok(read <= taken + 4 * MiB, `${read} bytes of RAM read, ${taken} taken`)
  for (let next = await chunks.next(); next.done !== true; next = await chunks.next())
    taken += next.value.length
  t.ok(taken > 16 * MiB)
  t.ok(read >= 16 * MiB)
})

void t.test('an import waits for the disk', async (t) => {
  const bhyve = await start(t, { memoryBytes: 32 * MiB, zeroFraction: 0 })
  const root = scratch(t)
  const sender = createClient({ checkpointDirectory: root, runDirectory: bhyve.runDirectory })
  await sender.createCheckpoint('vm1')
  const archive = await bytesOf(sender.exportCheckpoint('vm1', 'checkpoint'))
  let pulled = 0
  const source = (async function* () {
    for await (const chunk of chunksOf(archive, 65_536)) {
      pulled += chunk.length
      yield chunk
    }
  })()
  let begin: () => void = () => undefined
  let release: () => void = () => undefined
  const begun = new Promise<void>((resolve) => (begin = resolve))
  const released = new Promise<undefined>((resolve) => {
    release = () => resolve(undefined)
  })
  let isHeld = true
  const pool = inlinePool((job) => {
    // Not the small files, which come first.
    if (job !== 'writeArrived' || pulled < MiB || !isHeld) return undefined
    begin()
    return released
  })
  const client = createClientIn({ ...hostEnvironment, pool: () => pool }, { checkpointDirectory: root })
  const imported = client.importCheckpoint('vm2', undefined, source, { fsync: false })
  await begun
  await settle()
  t.ok(pulled <= 6 * MiB, `${pulled} bytes were pulled while nothing is written`)
  isHeld = false
  release()
  await t.rejects(imported, 'what the held jobs should have written is missing')
})
