/** createCheckpoint() when bhyve fails, hangs, or writes incomplete files. */
import fs from 'node:fs'
import net from 'node:net'
import path from 'node:path'
import t from 'tap'
import { createCheckpoint, createClient } from 'bhyve-checkpoint'
import { type SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { createClientIn } from '../../dist/client/client.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import {
  failure,
  contents,
  inlinePool,
  intercept,
  rejection,
  scratch,
  tree,
  until,
} from '../support/index.js'
import { start, refusing } from '../support/creating.js'

const MiB = 1024 * 1024
const native = loadSimulatorNative()

t.test('create: sends only one request to a bhyve that is not visible and writes nothing', async (t) => {
  const { directory, requests } = await refusing(t)
  intercept(t, 'processStatus', () => failure('EACCES', 'open'))
  const options = { runDirectory: directory, checkpointDirectory: path.join(directory, 'c') }
  const client = createClientIn({ ...hostEnvironment, pool: () => inlinePool() }, options)
  t.match(await rejection(client.createCheckpoint('vm1')), {
    code: 'ERR_CHECKPOINT_FAILED',
    vmState: 'unknown',
  })
  t.equal(requests.length, 1)
})

t.test('create: accepts a path of the maximum length that bhyve -r accepts', async (t) => {
  const { runDirectory } = await start(t)
  const directory = scratch(t)
  const client = createClient({ runDirectory, checkpointDirectory: directory, dialect: 'descriptor' })
  const room = 250 - Buffer.byteLength(path.join(directory, 'vm1/.ckp'))
  const checkpoint = await client.createCheckpoint('vm1', { name: 'n'.repeat(room) })
  t.equal(Buffer.byteLength(checkpoint.path), 250)
  t.match(await rejection(client.createCheckpoint('vm1', { name: 'n'.repeat(room + 1) })), {
    code: 'ERR_PATH_TOO_LONG',
  })
})

t.test('create: reports every failure of bhyve and keeps the previous checkpoint', async (t) => {
  const all = ['memory-empty', 'kernel-missing', 'metadata-missing']
  const empty = ['metadata-incomplete', 'memory-empty', 'kernel-size-mismatch']
  const cases: [NonNullable<SimulatorOptions['fault']>, string[]][] = [
    [{ at: 'accept', kind: 'close' }, all],
    [{ at: 'accept', kind: 'kill' }, all],
    [{ at: 'receive', kind: 'close' }, all],
    [{ at: 'receive', kind: 'kill' }, all],
    [{ at: 'open', kind: 'fail' }, ['memory-empty']],
    [{ at: 'open', kind: 'kill' }, ['memory-empty']],
    [{ at: 'pause', kind: 'fail' }, empty],
    [{ at: 'pause', kind: 'kill' }, empty],
    [{ at: 'memory', kind: 'fail' }, ['metadata-incomplete', 'kernel-size-mismatch']],
    [{ at: 'memory', kind: 'no-space' }, ['metadata-incomplete', 'kernel-size-mismatch']],
    [{ at: 'memory', kind: 'kill' }, ['metadata-incomplete', 'kernel-size-mismatch']],
    [{ at: 'kernel', kind: 'fail' }, ['metadata-incomplete']],
    [{ at: 'kernel', kind: 'no-space' }, ['metadata-incomplete']],
    [{ at: 'kernel', kind: 'kill' }, ['metadata-incomplete']],
    [{ at: 'device', kind: 'fail' }, ['metadata-incomplete']],
    [{ at: 'device', kind: 'kill' }, ['metadata-incomplete']],
    [{ at: 'metadata', kind: 'fail' }, ['metadata-incomplete']],
    [{ at: 'metadata', kind: 'no-space' }, ['metadata-incomplete']],
    [{ at: 'metadata', kind: 'kill' }, ['metadata-incomplete']],
  ]
  const checkpointDirectory = scratch(t)
  const good = await start(t)
  await createCheckpoint('vm1', { runDirectory: good.runDirectory, checkpointDirectory })
  const before = contents(path.join(checkpointDirectory, 'vm1'))
  for (const dialect of ['descriptor', 'path', 'reply'] as const) {
    for (const [fault, problems] of cases) {
      const what = `${dialect}: ${fault.at} ${fault.kind}`
      const bhyve = await start(t, { dialect, fault })
      const client = createClient({
        runDirectory: bhyve.runDirectory,
        checkpointDirectory,
        dialect: dialect === 'reply' ? 'descriptor' : dialect,
      })
      const error = await rejection(client.createCheckpoint('vm1'))
      t.equal(error.code, 'ERR_CHECKPOINT_FAILED', what)
      t.strictSame(error.problems?.map(({ code }) => code).sort(), [...problems].sort(), `${what}: problems`)
      t.equal(error.vmState, fault.kind === 'kill' ? 'off' : 'running', `${what}: the VM`)
      t.match(error, { vm: 'vm1', checkpoint: 'checkpoint' })
      if (dialect === 'reply' && fault.at === 'memory' && fault.kind === 'fail')
        t.type(error.reply, 'string', `${what}: reply`)
      t.strictSame(
        contents(path.join(checkpointDirectory, 'vm1')),
        before,
        `${what}: the previous checkpoint`,
      )
      t.match(await client.verifyCheckpoint('vm1', 'checkpoint'), { ok: true })
      await bhyve.stop()
    }
  }
})

t.test('create: reports a failure of a struct bhyve and removes the new directories', async (t) => {
  const checkpointDirectory = scratch(t)
  const bhyve = await start(t, { dialect: 'struct', fault: { at: 'device', kind: 'fail' } })
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory })
  t.match(await rejection(client.createCheckpoint('vm1')), {
    code: 'ERR_CHECKPOINT_FAILED',
    vmState: 'running',
  })
  t.strictSame(tree(checkpointDirectory), [], 'the new directories are removed')
})

t.test('create: succeeds when bhyve ends after it has written all files', async (t) => {
  for (const kind of ['close', 'kill'] as const) {
    const bhyve = await start(t, { dialect: 'reply', fault: { at: 'reply', kind } })
    const client = createClient({
      runDirectory: bhyve.runDirectory,
      checkpointDirectory: scratch(t),
      dialect: 'descriptor',
    })
    t.match(await client.createCheckpoint('vm1'), { memoryBytes: MiB }, `reply ${kind}: the files decide`)
    await bhyve.stop()
  }
})

t.test('create: rejects with ERR_STALLED wherever bhyve hangs', async (t) => {
  for (const at of [
    'accept',
    'receive',
    'open',
    'pause',
    'memory',
    'kernel',
    'device',
    'metadata',
    'reply',
  ] as const) {
    const bhyve = await start(t, { fault: { at, kind: 'hang' } })
    const checkpointDirectory = scratch(t)
    const client = createClient({
      runDirectory: bhyve.runDirectory,
      checkpointDirectory,
      dialect: 'descriptor',
    })
    t.match(
      await rejection(client.createCheckpoint('vm1', { stallTimeout: 100 })),
      { code: 'ERR_STALLED', vm: 'vm1' },
      at,
    )
    await bhyve.stop()
    await client.idle()
    t.strictSame(tree(checkpointDirectory), [], `${at}: no files are left once bhyve has ended`)
  }
})

t.test('create: waiting behind another request does not count as a stall', async (t) => {
  const { runDirectory } = await start(t, { memoryBytes: 8 * MiB, writeRate: 8 * MiB })
  const checkpointDirectory = scratch(t)
  const options = { runDirectory, checkpointDirectory, dialect: 'descriptor' } as const
  const results = await Promise.all([
    createClient(options).createCheckpoint('vm1', { name: 'one', stallTimeout: 300 }),
    createClient(options).createCheckpoint('vm1', { name: 'two', stallTimeout: 300 }),
  ])
  t.strictSame(
    results.map(({ name }) => name),
    ['one', 'two'],
  )
})

t.test('create: reads and ignores a flood of reply data', async (t) => {
  const directory = scratch(t)
  const server = net.createServer((socket) => {
    socket.on('error', () => undefined)
    socket.resume()
    const chunk = Buffer.alloc(1024 * 1024, 'x')
    let left = 64
    const pour = (): void => {
      if (left-- > 0) socket.write(chunk, pour)
      else socket.end()
    }
    pour()
  })
  await new Promise<void>((resolve) => server.listen(path.join(directory, 'vm1'), resolve))
  t.teardown(() => server.close())
  const client = createClient({
    runDirectory: directory,
    checkpointDirectory: path.join(directory, 'c'),
    dialect: 'descriptor',
  })
  const error = await rejection(client.createCheckpoint('vm1'))
  t.match(error, { code: 'ERR_CHECKPOINT_FAILED', reply: undefined })
})

t.test('create: after a cancel sends a struct bhyve a request that it rejects', async (t) => {
  const runDirectory = scratch(t)
  fs.mkdirSync(path.join(runDirectory, 'checkpoint'))
  const requests: Buffer[] = []
  const server = net.createServer((connection) => {
    const parts: Buffer[] = []
    connection.on('data', (bytes) => parts.push(bytes)).on('error', () => undefined)
    connection.on('end', () => requests.push(Buffer.concat(parts)))
  })
  await new Promise<void>((resolve) => server.listen(path.join(runDirectory, 'checkpoint/vm1'), resolve))
  t.teardown(() => server.close())
  const controller = new AbortController()
  const pool = inlinePool((job) => {
    if (job === 'recordWriter') controller.abort()
    return undefined
  })
  const options = { runDirectory, checkpointDirectory: scratch(t) }
  const client = createClientIn({ ...hostEnvironment, pool: () => pool }, options)
  const { signal } = controller
  await t.rejects(client.createCheckpoint('vm1', { signal }), { name: 'AbortError' })
  await until(() => requests.length > 0, 'the end of the connection')
  // Without a request, bhyve would execute its previous request again.
  t.strictSame(requests, [native.encodeRequest('struct', 'refused', '')])
  await client.idle()
})
