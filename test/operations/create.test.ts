/** createCheckpoint() through the public interface, with simulated VMs in processes of their own. */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import {
  CheckpointError,
  createCheckpoint,
  createClient,
  destroyAll,
  listCheckpoints,
  type Progress,
} from 'bhyve-checkpoint'
import { createClientIn } from '../../dist/client/client.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import {
  checkpointFiles,
  firstWarning,
  contents,
  inlinePool,
  openDescriptors,
  rejection,
  scratch,
  tree,
  until,
} from '../support/index.js'
import { start } from '../support/creating.js'

const MiB = 1024 * 1024
const native = loadSimulatorNative()
const filesOf = (name: string): string[] => [
  `${name}.ckp`,
  `${name}.ckp.kern`,
  `${name}.ckp.manifest`,
  `${name}.ckp.meta`,
]

t.test('create: works in every dialect, detected or named', async (t) => {
  for (const simulated of ['struct', 'path', 'descriptor', 'reply'] as const) {
    const bhyve = await start(t, { dialect: simulated, cpus: 4 })
    const named = simulated === 'reply' ? 'descriptor' : simulated
    for (const dialect of ['auto', named] as const) {
      const checkpointDirectory = scratch(t)
      const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory, dialect })
      const checkpoint = await client.createCheckpoint('vm1')
      const what = `${simulated} as ${dialect}`
      t.equal(checkpoint.path, path.join(checkpointDirectory, 'vm1/checkpoint.ckp'), what)
      t.match(checkpoint, {
        vm: 'vm1',
        name: 'checkpoint',
        memoryBytes: MiB,
        cpus: 4,
        poweredOff: false,
        pinned: false,
      })
      t.strictSame(
        checkpointFiles(path.join(checkpointDirectory, 'vm1')),
        filesOf('checkpoint'),
        `${what}: files`,
      )
      t.match(await client.listCheckpoints('vm1'), [{ ...checkpoint, state: 'complete', problems: [] }])
      t.match(await client.verifyCheckpoint('vm1', 'checkpoint'), {
        ok: true,
        depth: 'structure',
        problems: [],
      })
      t.strictSame(await client.destroyAll('vm1'), ['checkpoint'])
      t.strictSame(tree(checkpointDirectory), [], `${what}: no files are left`)
    }
    t.strictSame(fs.readdirSync(path.join(bhyve.runDirectory, '../cwd')), [], `${simulated}: no stray file`)
  }
})

t.test('create: saves the RAM of the guest unchanged', async (t) => {
  const bhyve = await start(t, { memoryBytes: 3 * MiB, zeroFraction: 0.25 })
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: scratch(t) })
  const [one, two] = [
    await client.createCheckpoint('vm1', { name: 'one' }),
    await client.createCheckpoint('vm1', { name: 'two' }),
  ]
  const ram = fs.readFileSync(one.path)
  t.ok(ram.equals(fs.readFileSync(two.path)))
  const pages = Array.from({ length: ram.length / 4096 }, (_, page) =>
    ram.subarray(page * 4096, (page + 1) * 4096),
  )
  t.equal(pages.filter((page) => page.every((byte) => byte === 0)).length, pages.length / 4)
})

t.test('createCheckpoint(): accepts the options of the client and of the call', async (t) => {
  const { runDirectory } = await start(t)
  const checkpointDirectory = scratch(t)
  let last: Progress | undefined
  const onProgress = (progress: Progress): void => void (last = progress)
  const checkpoint = await createCheckpoint('vm1', {
    runDirectory,
    checkpointDirectory,
    name: 'top',
    onProgress,
  })
  t.match(last, { bytes: MiB, totalBytes: MiB }, 'the last report has the size')
  t.match(await listCheckpoints('vm1', { checkpointDirectory }), [{ name: 'top', path: checkpoint.path }])
  t.strictSame(await destroyAll('vm1', { checkpointDirectory }), ['top'])
  t.strictSame(await listCheckpoints('vm1', { checkpointDirectory }), [])
  t.strictSame(await destroyAll('vm1', { checkpointDirectory }), [])
})

t.test('create: reports phases, bytes and the total size', async (t) => {
  const { runDirectory } = await start(t, { memoryBytes: 4 * MiB, writeRate: 16 * MiB })
  const client = createClient({ runDirectory, checkpointDirectory: scratch(t) })
  const seen: Progress[] = []
  await client.createCheckpoint('vm1', {
    onProgress: (progress) => seen.push(progress),
    memoryBytes: 4 * MiB,
  })
  const phases = seen.map(({ phase }) => phase).filter((phase, index, all) => phase !== all[index - 1])
  t.strictSame(phases, ['queued', 'saving', 'checking', 'digesting', 'syncing', 'publishing'])
  t.ok(
    seen.every(({ vm, name, totalBytes }) => vm === 'vm1' && name === 'checkpoint' && totalBytes === 4 * MiB),
  )
  for (const phase of ['saving', 'digesting']) {
    const bytes = seen.filter((one) => one.phase === phase).map((one) => one.bytes)
    t.strictSame(
      bytes,
      [...bytes].sort((a, b) => a - b),
      `${phase}: bytes never decrease`,
    )
    t.equal(bytes.at(-1), 4 * MiB, `${phase}: the last report has all bytes`)
  }
  t.equal(seen.at(-1)?.bytes, 4 * MiB)
  const again: Progress[] = []
  await client.createCheckpoint('vm1', { onProgress: (progress) => again.push(progress) })
  t.equal(again.at(-1)?.totalBytes, 4 * MiB)
  t.ok(
    again.some(({ phase, totalBytes }) => phase === 'saving' && totalBytes === 4 * MiB),
    'the total is the size of the previous checkpoint',
  )
})

t.test('create: succeeds although the progress function throws', async (t) => {
  const { runDirectory } = await start(t)
  const client = createClient({ runDirectory, checkpointDirectory: scratch(t) })
  const warned = firstWarning()
  const broken = () => {
    throw new Error('a bug in the progress bar')
  }
  await t.resolves(client.createCheckpoint('vm1', { onProgress: broken }))
  t.match(await warned, { message: 'a bug in the progress bar' })
})

t.test('create: obeys ifExists', async (t) => {
  const { runDirectory } = await start(t)
  const checkpointDirectory = scratch(t)
  const client = createClient({ runDirectory, checkpointDirectory })
  const first = await client.createCheckpoint('vm1', { ifExists: 'fail' })
  const before = contents(path.join(checkpointDirectory, 'vm1'))
  t.match(await rejection(client.createCheckpoint('vm1', { ifExists: 'fail' })), {
    code: 'ERR_CHECKPOINT_EXISTS',
    vm: 'vm1',
    checkpoint: 'checkpoint',
  })
  t.strictSame(contents(path.join(checkpointDirectory, 'vm1')), before)
  const second = await client.createCheckpoint('vm1')
  t.ok(second.createdAt >= first.createdAt)
  t.equal((await client.listCheckpoints('vm1')).length, 1)
})

t.test('create: of two calls with one name, the later checkpoint remains', async (t) => {
  const { runDirectory } = await start(t)
  const checkpointDirectory = scratch(t)
  const client = createClient({ runDirectory, checkpointDirectory })
  const [first, second] = await Promise.all([client.createCheckpoint('vm1'), client.createCheckpoint('vm1')])
  t.ok(first.createdAt <= second.createdAt)
  t.match(await client.getCheckpoint('vm1', 'checkpoint'), { createdAt: second.createdAt })
  t.strictSame(checkpointFiles(path.join(checkpointDirectory, 'vm1')), filesOf('checkpoint'))
})

t.test('create: rejects with ERR_NO_SPACE before it sends a request', async (t) => {
  const { runDirectory } = await start(t)
  const checkpointDirectory = scratch(t)
  const client = createClient({ runDirectory, checkpointDirectory })
  const error = await rejection(client.createCheckpoint('vm1', { memoryBytes: 2 ** 52 }))
  t.equal(error.code, 'ERR_NO_SPACE')
  t.ok((error.requiredBytes ?? 0) > 2 ** 52 && (error.availableBytes ?? Infinity) < 2 ** 52)
  t.strictSame(tree(checkpointDirectory), [])
})

t.test('create: rejects invalid options before it changes anything', async (t) => {
  const checkpointDirectory = path.join(scratch(t), 'c')
  const client = createClient({ runDirectory: '/nonexistent', checkpointDirectory })
  const bad = [
    { ifExists: 'maybe' },
    { timeout: 0 },
    { timeout: NaN },
    { timeout: '5' },
    { timeout: 2 ** 31 },
    { stallTimeout: -1 },
    { memoryBytes: 0 },
    { memoryBytes: 1.5 },
    { onProgress: 1 },
    { signal: {} },
    { fsync: 1 },
    { digest: 'sha256' },
    { sparsify: 1 },
    { names: 'x' },
    { poweroff: 1 },
    5,
    null,
  ] as object[]
  for (const options of bad) {
    t.match(
      await rejection(client.createCheckpoint('vm1', options)),
      { code: 'ERR_INVALID_OPTION' },
      JSON.stringify(options),
    )
  }
  for (const options of [
    { runDirectory: 'relative' },
    { checkpointDirectory: 'relative' },
    { checkpointDirectory: {} },
    { dialect: 'x' },
    { trustedUids: [] },
    { trustedUids: [-1] },
    { trustedUids: 0 },
    { checkpointDir: '/x' },
    7,
    null,
  ] as object[]) {
    t.throws(() => createClient(options), { code: 'ERR_INVALID_OPTION' }, JSON.stringify(options))
  }
  t.notOk(fs.existsSync(checkpointDirectory))
})

t.test('create: leaks no descriptors, however it ends', async (t) => {
  const good = await start(t)
  const failing = await start(t, { vm: 'vm2', fault: { at: 'kernel', kind: 'fail' } })
  const directory = scratch(t)
  const round = async (): Promise<void> => {
    await createCheckpoint('vm1', { runDirectory: good.runDirectory, checkpointDirectory: directory })
    await createCheckpoint('vm2', {
      runDirectory: failing.runDirectory,
      checkpointDirectory: directory,
    }).catch(() => undefined)
    await createCheckpoint('vm3', { runDirectory: good.runDirectory, checkpointDirectory: directory }).catch(
      () => undefined,
    )
    await listCheckpoints('vm1', { checkpointDirectory: directory })
  }
  await Promise.all([round(), round(), round()])
  const before = openDescriptors()
  const owned = native.ownedDescriptors()
  for (let i = 0; i < 5; i++) await round()
  // Threads that were started since then end after they have been idle for a while.
  await until(() => openDescriptors() <= before, 'descriptors')
  t.equal(native.ownedDescriptors(), owned)
})

t.test('CheckpointError: keeps its properties', async (t) => {
  const error = new CheckpointError('ERR_SYSTEM', 'text', { vm: 'vm1', cause: new Error('inner') })
  t.match(error, {
    name: 'CheckpointError',
    code: 'ERR_SYSTEM',
    message: 'text',
    vm: 'vm1',
    cause: { message: 'inner' },
  })
  t.notOk('problems' in error, 'unknown details are absent')
})

t.test("create: createdAt is the time of bhyve's last write, not of the publication", async (t) => {
  const { runDirectory } = await start(t)
  const checkpointDirectory = scratch(t)
  const anHourAgo = new Date(Math.floor(Date.now() / 1000) * 1000 - 3_600_000)
  const pool = inlinePool((job) => {
    if (job !== 'collectStage') return undefined
    const staging = path.join(checkpointDirectory, 'vm1/.staging')
    const inbox = path.join(staging, fs.readdirSync(staging)[0]!, 'in')
    for (const file of fs.readdirSync(inbox)) fs.utimesSync(path.join(inbox, file), anHourAgo, anHourAgo)
    return undefined
  })
  const options = { runDirectory, checkpointDirectory, dialect: 'descriptor' } as const
  const client = createClientIn({ ...hostEnvironment, pool: () => pool }, options)
  t.strictSame((await client.createCheckpoint('vm1')).createdAt, anHourAgo)
  t.match(await client.listCheckpoints('vm1'), [{ createdAt: anHourAgo }])
})
