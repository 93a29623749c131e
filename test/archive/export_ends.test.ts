/** However the consumer of an export stops, the call ends and its files are closed. */
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import type { Readable } from 'node:stream'
import t, { type Test } from 'tap'
import { type CheckpointClient } from 'bhyve-checkpoint'
import { store } from '../support/stored.js'

const memoryBytes = 16 * 1024 * 1024
const compressions = ['none', 'gzip'] as const

/** A checkpoint whose RAM cannot be compressed, so that no buffer holds all of it. */
function large(t: Test): { client: CheckpointClient; openFiles: () => number; memory: string } {
  const { client, directory, put } = store(t)
  // The timers of calls do not keep a process alive.
  const alive = setInterval(() => undefined, 1000)
  t.teardown(() => clearInterval(alive))
  put('large')
  const base = path.join(directory, 'large.ckp')
  const metadata = JSON.parse(fs.readFileSync(`${base}.meta`, 'utf8')) as Record<string, object>
  const basic = { ...metadata['basic metadata'], memsize: memoryBytes }
  fs.writeFileSync(`${base}.meta`, JSON.stringify({ ...metadata, 'basic metadata': basic }))
  fs.writeFileSync(base, randomBytes(memoryBytes))
  const descriptors = process.platform === 'linux' ? '/proc/self/fd' : '/dev/fd'
  const openFiles = (): number =>
    fs.readdirSync(descriptors).filter((one) => isIn(directory, path.join(descriptors, one))).length
  return { client, openFiles, memory: base }
}

function isIn(directory: string, descriptor: string): boolean {
  try {
    return fs.readlinkSync(descriptor).startsWith(directory)
  } catch {
    return false
  }
}

async function begun(stream: Readable): Promise<Readable> {
  await once(stream, 'readable')
  stream.read(10)
  return stream
}

for (const compress of compressions) {
  void t.test(`${compress}: the consumer destroys the stream`, async (t) => {
    const { client, openFiles } = large(t)
    const stream = await begun(client.exportCheckpoint('vm1', 'large', { compress }))
    t.not(openFiles(), 0, 'the files are open')
    stream.destroy()
    await client.idle({ timeout: 5000 })
    t.equal(openFiles(), 0)
  })

  void t.test(`${compress}: the consumer leaves its loop`, async (t) => {
    const { client, openFiles } = large(t)
    for await (const bytes of client.exportCheckpoint('vm1', 'large', { compress }))
      if ((bytes as Buffer).length > 0) break
    await client.idle({ timeout: 5000 })
    t.equal(openFiles(), 0)
  })

  void t.test(`${compress}: a cancel, although the consumer does not read`, async (t) => {
    const { client, openFiles } = large(t)
    const controller = new AbortController()
    const { signal } = controller
    const stream = await begun(client.exportCheckpoint('vm1', 'large', { compress, signal }))
    const failed = once(stream, 'error', { signal: AbortSignal.timeout(5000) })
    controller.abort()
    const [error] = (await failed) as [Error]
    t.match(error, { name: 'AbortError' })
    await client.idle({ timeout: 5000 })
    t.strictSame(client.inFlight(), [])
    t.equal(openFiles(), 0)
  })

  void t.test(`${compress}: a timeout, although the consumer does not read`, async (t) => {
    const { client, openFiles } = large(t)
    const stream = await begun(client.exportCheckpoint('vm1', 'large', { compress, timeout: 300 }))
    const [error] = (await once(stream, 'error', { signal: AbortSignal.timeout(5000) })) as [Error]
    t.match(error, { code: 'ERR_TIMEOUT', vm: 'vm1', checkpoint: 'large' })
    await client.idle({ timeout: 5000 })
    t.equal(openFiles(), 0)
  })

  void t.test(`${compress}: the RAM file becomes shorter`, async (t) => {
    const { client, openFiles, memory } = large(t)
    const stream = await begun(client.exportCheckpoint('vm1', 'large', { compress }))
    fs.truncateSync(memory, 4096)
    await t.rejects(stream.toArray(), { code: 'ERR_CHECKPOINT_DAMAGED', message: /became shorter/ })
    await client.idle({ timeout: 5000 })
    t.equal(openFiles(), 0)
  })
}

void t.test('a stream that nobody reads opens nothing', async (t) => {
  const { client, openFiles } = large(t)
  const stream = client.exportCheckpoint('vm1', 'large')
  await client.idle({ timeout: 5000 })
  t.equal(openFiles(), 0)
  t.notOk(stream.destroyed)
})
