/** The scan of guest RAM when bhyve, a cancel or the file system interferes. */
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import t from 'tap'
import { createClient, type Progress } from 'bhyve-checkpoint'
import { Cancellation } from '../../dist/base/cancellation.js'
import { createClientIn } from '../../dist/client/client.js'
import { loadNative } from '../../dist/base/native.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { ProgressReporter } from '../../dist/operations/progress.js'
import { watchSaving } from '../../dist/operations/saving/watch_saving.js'
import { forEachSlice, StopFlag } from '../../dist/operations/slices.js'
import type { Stage } from '../../dist/store/stage.js'
import { OpenFile } from '../../dist/fs/open_file.js'
import {
  inlinePool,
  openDescriptors,
  rejection,
  scratch,
  serveByHand,
  tree,
  until,
} from '../support/index.js'
import { stored, world, writeGuest, image, longRuns } from '../support/digesting.js'

const MiB = 1024 * 1024
const chunk = 256 * 1024
const native = loadNative()
const { errno } = os.constants

t.test('watchSaving: a poll that ends after bhyve has finished cancels nothing', async (t) => {
  const cancellation = new Cancellation({ doing: 'testing', vm: 'vm1' })
  const settings = { vm: 'vm1', name: 'n', onProgress: undefined, memoryBytes: 1, stallTimeout: 4 }
  const progress = new ProgressReporter(settings, cancellation)
  let answer: ((saved: object) => void) | undefined
  const stage = { saved: () => new Promise((resolve) => (answer = resolve)) } as unknown as Stage
  const start = performance.now()
  const watched = { ...settings, poweroff: false, isOurDelay: () => false }
  const stop = watchSaving(stage, watched, cancellation, progress, () => true)
  // The timer of the watch does not keep this process alive, so use another timer.
  const alive = setInterval(() => undefined, 1)
  await until(() => answer !== undefined && performance.now() - start > 10, 'a slow poll')
  const stopped = stop()
  answer?.({ begun: false, bytes: 0, written: 0, othersProgress: '' })
  await stopped
  clearInterval(alive)
  t.notOk(cancellation.cancelled)
})

t.test('forEachSlice: runs few slices at a time, in order, and none after it ends', async (t) => {
  const cancellation = new Cancellation({ doing: 'testing', vm: 'vm1' })
  using stop = new StopFlag(cancellation)
  const progress = new ProgressReporter(
    { vm: 'v', name: 'n', onProgress: undefined, memoryBytes: 1 },
    cancellation,
  )
  const slicing = { bytes: 100 * MiB + 1, chunkBytes: chunk, stop, cancellation, progress }
  let running = 0
  let most = 0
  const work = async ({ from }: { from: number }): Promise<number> => {
    most = Math.max(most, ++running)
    await new Promise((resolve) => setImmediate(resolve))
    if (from % (16 * MiB) === 0) await new Promise((resolve) => setTimeout(resolve, 2))
    running--
    return from
  }
  const taken: number[] = []
  await forEachSlice(slicing, work, (from) => taken.push(from))
  t.strictSame(
    taken,
    Array.from({ length: 13 }, (_, index) => index * 8 * MiB),
  )
  t.ok(most > 1 && most <= 4, `${most}`)
  let begun = 0
  const failing = async (slice: { from: number }): Promise<number> => {
    begun++
    if ((await work(slice)) === 8 * MiB) throw new Error('broken')
    return 0
  }
  await t.rejects(
    forEachSlice(slicing, failing, () => undefined),
    { message: 'broken' },
  )
  t.equal(running, 0, 'all work has ended')
  t.ok(begun < 8)
  const cancelling = async (slice: { from: number }): Promise<number> => {
    if (slice.from === 16 * MiB) cancellation.cancel(new Error('enough'))
    return work(slice)
  }
  t.equal(stop.array[0], 0)
  await t.rejects(
    forEachSlice(slicing, cancelling, () => undefined),
    { message: 'enough' },
  )
  t.equal(running, 0)
  t.equal(stop.array[0], 1, 'the threads can read the stop')
})

t.test('create and verify: a cancel during the scan leaves no files and no descriptors', async (t) => {
  const { client, root } = await world(t, { memoryBytes: 192 * MiB, zeroFraction: 0 })
  await client.createCheckpoint('vm1', { name: 'other', fsync: false })
  await client.verifyCheckpoint('vm1', 'other', { depth: 'content' })
  const before = { owned: native.ownedDescriptors(), open: openDescriptors(), files: tree(root) }
  const creating = new AbortController()
  const phases: string[] = []
  const onProgress = ({ phase }: Progress): void => {
    phases.push(phase)
    if (phase === 'digesting') creating.abort()
  }
  const create = client.createCheckpoint('vm1', { signal: creating.signal, onProgress })
  await t.rejects(create, { name: 'AbortError' })
  await client.idle()
  t.strictSame(tree(root), before.files, 'no files are left')
  t.equal(native.ownedDescriptors(), before.owned, 'descriptors')
  await until(() => openDescriptors() <= before.open, "the threads' descriptors")
  t.notOk(phases.includes('syncing'), 'no later phase')

  const controller = new AbortController()
  const seen: Progress[] = []
  const verifying = client.verifyCheckpoint('vm1', 'other', {
    depth: 'content',
    signal: controller.signal,
    onProgress: (progress) => {
      seen.push(progress)
      controller.abort(new Error('enough'))
    },
  })
  await t.rejects(verifying, { name: 'AbortError', begun: true, cause: { message: 'enough' } }, 'verifying')
  await client.idle()
  t.match(seen, [{ phase: 'digesting', vm: 'vm1', name: 'other', bytes: 0, totalBytes: 192 * MiB }])
  t.equal(seen.length, 1)
  t.equal(native.ownedDescriptors(), before.owned, 'verifying: descriptors')
})

t.test('create: a timeout during the scan leaves no files and no descriptors', async (t) => {
  const { runDirectory, root } = await world(t, { memoryBytes: 32 * MiB })
  let slices = 0
  // The third slice takes longer than the timeout.
  const pool = inlinePool((name) => {
    if (name !== 'scanSlice' || ++slices !== 3) return undefined
    return new Promise((resolve) => setTimeout(() => resolve({ holesRefused: false }), 600))
  })
  const options = { runDirectory, checkpointDirectory: root, dialect: 'descriptor' } as const
  const client = createClientIn({ ...hostEnvironment, pool: () => pool }, options)
  const owned = native.ownedDescriptors()
  t.match(await rejection(client.createCheckpoint('vm1', { timeout: 500 })), {
    code: 'ERR_TIMEOUT',
    vm: 'vm1',
  })
  await client.idle()
  t.strictSame(tree(root), [])
  t.equal(native.ownedDescriptors(), owned)
})

t.test('create: does not write to a list of digests that bhyve planted', async (t) => {
  const directory = fs.realpathSync(scratch(t))
  const { serve } = serveByHand(t, directory)
  const secret = path.join(directory, 'secret')
  fs.writeFileSync(secret, 'secret')
  const checkpointDirectory = path.join(directory, 'stored')
  const client = createClient({ runDirectory: directory, checkpointDirectory, dialect: 'path' })
  const call = client.createCheckpoint('vm1')
  await serve((inbox) => {
    writeGuest(path.join(inbox, 'ckp'), randomBytes(chunk))
    fs.symlinkSync(secret, path.join(inbox, '../digests'))
  })
  await call
  t.match(await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' }), {
    ok: true,
    depth: 'content',
  })
  t.equal(fs.readFileSync(secret, 'utf8'), 'secret')
})

t.test('scan: makes holes of complete blocks on a file system with large blocks', async (t) => {
  const directory = fs.realpathSync(scratch(t))
  const { serve } = serveByHand(t, directory)
  const target = native as {
    punchHole: typeof native.punchHole
    holeBlockBytes: typeof native.holeBlockBytes
  }
  const punchHole = native.punchHole.bind(native)
  const holeBlockBytes = native.holeBlockBytes.bind(native)
  t.teardown(() => Object.assign(target, { punchHole, holeBlockBytes }))
  const bytes = image(20 * MiB + 12_345)
  bytes.fill(0, MiB - 4096, 4 * MiB + 4096)
  bytes.fill(0, 19 * MiB)
  const holes: number[] = []
  target.punchHole = (descriptor, offset, length) => {
    holes.push(offset, offset + length)
    return punchHole(descriptor, offset, length)
  }
  for (const block of [4096, 64 * 1024, MiB, 3 * 4096]) {
    target.holeBlockBytes = () => block
    holes.length = 0
    const client = createClientIn(
      { ...hostEnvironment, pool: () => inlinePool() },
      { runDirectory: directory, checkpointDirectory: path.join(directory, 'stored'), dialect: 'path' },
    )
    const call = client.createCheckpoint('vm1')
    await serve((inbox) => writeGuest(path.join(inbox, 'ckp'), bytes))
    const { path: file } = await call
    t.ok(fs.readFileSync(file).equals(bytes), `${block}: content`)
    t.ok(
      holes.every((at) => at % block === 0),
      `${block}: complete blocks`,
    )
    // Every zero block in a run of 64 KiB or more, within one slice of the file.
    const expected = new Set(longRuns(bytes, [0, 8 * MiB, 16 * MiB, bytes.length], block))
    for (let at = 0; at + block <= bytes.length; at += block) {
      const isHole = holes.some((from, i) => i % 2 === 0 && from <= at && at + block <= holes[i + 1]!)
      if (isHole !== expected.has(at)) t.fail(`${block}: the block at ${at}`)
    }
  }
})

t.test('scan: continues on a file system that cannot make holes', async (t) => {
  await t.test('for each error code', async (t) => {
    const { runDirectory, root, memory } = await world(t, { memoryBytes: 16 * MiB })
    const options = { runDirectory, checkpointDirectory: root, dialect: 'descriptor' } as const
    const client = createClientIn({ ...hostEnvironment, pool: () => inlinePool() }, options)
    const original = native.punchHole.bind(native)
    const target = native as { punchHole: typeof native.punchHole }
    t.teardown(() => (target.punchHole = original))
    for (const code of ['EOPNOTSUPP', 'ENOSYS', 'EINVAL', 'ENOSPC'] as const) {
      let attempts = 0
      target.punchHole = () => {
        attempts++
        return { errno: errno[code], syscall: 'fallocate' }
      }
      await client.createCheckpoint('vm1')
      t.ok(stored(memory) >= 16 * MiB, code)
      t.ok(attempts >= 1 && attempts <= 4, `${code}: ${attempts} attempts`)
      t.match(await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' }), {
        ok: true,
        depth: 'content',
      })
    }
    target.punchHole = () => ({ errno: errno.EIO, syscall: 'fallocate' })
    const error = await rejection(client.createCheckpoint('vm1'))
    t.match(error, { code: 'ERR_SYSTEM', errno: errno.EIO, syscall: 'fallocate', vm: 'vm1', cause: Error })
    target.punchHole = original
    t.match(
      await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' }),
      { ok: true },
      'the previous checkpoint is unchanged',
    )
  })
  await t.test('ramfs', async (t) => {
    const root = scratch(t)
    try {
      execFileSync('mount', ['-t', 'ramfs', 'ramfs', root], { stdio: 'pipe' })
    } catch {
      t.pass('not run: no permission to mount a ramfs', { skip: 'no permission to mount a ramfs' })
      return
    }
    t.teardown(() => execFileSync('umount', ['-l', root]))
    const { client, memory } = await world(t, {}, root)
    await client.createCheckpoint('vm1')
    t.ok(stored(memory) >= 4 * MiB)
    t.match(await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' }), {
      ok: true,
      depth: 'content',
    })
  })
})

t.test('scan: notices a file that is replaced during the scan', async (t) => {
  // Use more than one slice, because only then other jobs can run in between.
  const { runDirectory, root, directory } = await world(t, { memoryBytes: 12 * MiB })
  const options = { runDirectory, checkpointDirectory: root, dialect: 'descriptor' } as const
  const secret = path.join(scratch(t), 'secret')
  fs.writeFileSync(secret, Buffer.alloc(12 * MiB))
  const inStage = (): string => {
    const staging = path.join(directory, '.staging')
    return path.join(staging, fs.readdirSync(staging)[0]!, 'checkpoint.ckp')
  }
  const swaps: Record<string, (file: string) => void> = {
    'a symlink': (file) => fs.symlinkSync(secret, file),
    'a hard link': (file) => fs.linkSync(secret, file),
    'a FIFO': (file) => execFileSync('mkfifo', [file]),
    'a directory': (file) => fs.mkdirSync(file),
    'another file': (file) => fs.writeFileSync(file, Buffer.alloc(12 * MiB)),
    'a shorter file': (file) => fs.writeFileSync(file, 'short'),
    nothing: () => undefined,
  }
  for (const at of ['beginScan', 'scanSlice', 'endScan']) {
    for (const [what, swap] of Object.entries(swaps)) {
      // Before the scan begins, another file cannot be distinguished from the right one.
      if (at === 'beginScan' && what === 'another file') continue
      let struck = false
      const pool = inlinePool((name) => {
        if (name !== at || struck) return undefined
        struck = true
        // Keep the old file, so that its inode number is not reused.
        const file = inStage()
        fs.renameSync(file, `${file}.old`)
        swap(file)
        return undefined
      })
      const client = createClientIn({ ...hostEnvironment, pool: () => pool }, options)
      const error = await rejection(client.createCheckpoint('vm1'))
      await client.idle()
      t.match(
        error,
        { code: /^ERR_(CHECKPOINT_DAMAGED|SYSTEM)$/, vm: 'vm1' },
        `${at}: ${what}: ${error.message}`,
      )
      t.strictSame(tree(root), [], `${at}: ${what}: no files are left`)
    }
  }
  t.ok(fs.statSync(secret).blocks * 512 >= 12 * MiB, 'no hole was made in the foreign file')
})

t.test('OpenFile: reports a full disk as ERR_NO_SPACE', (t) => {
  const { writeSync } = fs
  t.teardown(() => (fs.writeSync = writeSync))
  fs.writeSync = () => {
    throw Object.assign(new Error('ENOSPC'), { code: 'ENOSPC', errno: -errno.ENOSPC, syscall: 'write' })
  }
  const file = OpenFile.borrow(-1, '/a/file')
  t.throws(() => file.writeAt(Buffer.alloc(1), 0), { code: 'ERR_NO_SPACE', path: '/a/file' })
  t.end()
})

t.test('scan: rejects a file that is truncated during the scan', async (t) => {
  const { runDirectory, root, directory } = await world(t, { memoryBytes: 24 * MiB })
  let slices = 0
  const pool = inlinePool((name) => {
    if (name !== 'scanSlice' || ++slices !== 2) return undefined
    const staging = path.join(directory, '.staging')
    fs.truncateSync(path.join(staging, fs.readdirSync(staging)[0]!, 'checkpoint.ckp'), MiB)
    return undefined
  })
  const options = { runDirectory, checkpointDirectory: root, dialect: 'descriptor' } as const
  const client = createClientIn({ ...hostEnvironment, pool: () => pool }, options)
  t.match(await rejection(client.createCheckpoint('vm1')), {
    code: 'ERR_CHECKPOINT_DAMAGED',
    message: /changed before it was published\. Another process may still be writing to the file$/,
  })
})
