/** onFrozen: the guest is frozen while the function runs, and never stays frozen. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { createInterface } from 'node:readline'
import t, { type Test } from 'tap'
import { CheckpointError, createClient, type CreateOptions, type Progress } from 'bhyve-checkpoint'
import type { SimulatedBhyve, SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { createClientIn } from '../../dist/client/client.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { contents, inlinePool, openDescriptors, rejection, scratch, tree, until } from '../support/index.js'
import { start } from '../support/creating.js'
import { guardOf, processState } from '../support/guards.js'

const MiB = 1024 * 1024

/** A guest that takes a second to save: the guard cannot miss it. */
const slow: Partial<SimulatorOptions> = { memoryBytes: 16 * MiB, writeRate: 16 * MiB }

interface World {
  bhyve: SimulatedBhyve
  directory: string
  create: (options: CreateOptions) => ReturnType<ReturnType<typeof createClient>['createCheckpoint']>
  client: ReturnType<typeof createClient>
}

async function world(t: Test, options: Partial<SimulatorOptions> = slow): Promise<World> {
  const bhyve = await start(t, options)
  const checkpointDirectory = scratch(t)
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory })
  const directory = path.join(checkpointDirectory, 'vm1')
  return { bhyve, directory, client, create: (one) => client.createCheckpoint('vm1', one) }
}

void t.test('the guest is frozen while onFrozen runs, and runs again afterwards', async (t) => {
  for (const dialect of ['struct', 'path', 'descriptor', 'reply'] as const) {
    const { bhyve, directory, client, create } = await world(t, { ...slow, dialect })
    const descriptors = openDescriptors()
    const phases: Progress['phase'][] = []
    let kept: AbortSignal | undefined
    const seen: { state: string; sizes: (number | undefined)[]; id: string; pid: number | undefined }[] = []
    const inbox = (): string => {
      const staging = path.join(directory, '.staging')
      const [stage] = fs.readdirSync(staging).filter((name) => /^[a-z0-9]+$/.test(name) && name !== 'lock')
      return path.join(staging, stage ?? '', 'in')
    }
    const checkpoint = await create({
      onProgress: ({ phase }) => phases.push(phase),
      onFrozen: async ({ vm, id, pid, signal }) => {
        t.equal(vm, 'vm1')
        t.equal(signal.aborted, false)
        kept = signal
        await until(() => processState(bhyve.pid) === 'stopped', 'it happens')
        const sizes = ['ckp', 'ckp.meta'].map((name) => fs.statSync(path.join(inbox(), name)).size)
        seen.push({ state: processState(bhyve.pid), sizes, id, pid })
      },
    })
    t.equal(seen.length, 1, `${dialect}: called once`)
    t.equal(kept?.aborted, false, `${dialect}: a success aborts nothing`)
    const [{ state, sizes, id, pid }] = seen as [(typeof seen)[number]]
    t.equal(state, 'stopped', `${dialect}: the process is stopped`)
    t.equal(pid, bhyve.pid)
    t.ok((sizes[0] ?? 0) > 0 && (sizes[0] ?? 0) < 16 * MiB, `${dialect}: RAM is being written`)
    t.equal(sizes[1], 0, `${dialect}: the metadata are not written yet`)
    t.equal(processState(bhyve.pid), 'running', `${dialect}: the VM runs again`)
    t.ok(phases.includes('frozen'), 'progress reports the phase')
    t.ok((checkpoint.frozenMs ?? 0) > 500, `${dialect}: frozen for ${String(checkpoint.frozenMs)} ms`)
    const manifest = JSON.parse(fs.readFileSync(checkpoint.files.manifest ?? '', 'utf8')) as { id: string }
    t.equal(manifest.id, id, 'the id is the one of the manifest')
    t.match(await client.listCheckpoints('vm1'), [{ state: 'complete', frozenMs: checkpoint.frozenMs }])
    t.match(await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' }), { ok: true })
    t.strictSame(
      tree(directory).filter((name) => name.includes('hold')),
      [],
      'the record of the hold is removed',
    )
    await until(() => openDescriptors() <= descriptors, 'it happens')
  }
})

void t.test('onFrozen rejects: nothing is published and the previous checkpoint is unchanged', async (t) => {
  const { bhyve, directory, create } = await world(t)
  await create({})
  const before = contents(directory)
  const cause = new Error('no snapshot')
  const error = await rejection(create({ onFrozen: () => Promise.reject(cause) }))
  t.match(error, {
    code: 'ERR_DISKS_NOT_CAPTURED',
    vm: 'vm1',
    checkpoint: 'checkpoint',
    vmState: 'running',
    cause,
  })
  t.match(error.message, /capturing its disks failed: no snapshot\. The VM is running/)
  t.equal(processState(bhyve.pid), 'running')
  t.strictSame(contents(directory), before)
  t.match(await rejection(create({ onFrozen: () => { throw cause } })), { code: 'ERR_DISKS_NOT_CAPTURED', cause }) // prettier-ignore
})

void t.test('onFrozen takes too long: the VM continues when freezeTimeout has passed', async (t) => {
  const { bhyve, create } = await world(t)
  let aborted = false
  let stateAfter = ''
  const error = await rejection(
    create({
      freezeTimeout: 100,
      onFrozen: ({ signal }) => {
        signal.addEventListener('abort', () => (aborted = true))
        // A blocked event loop does not keep the VM frozen.
        const deadline = performance.now() + 20_000
        while (processState(bhyve.pid) !== 'running' && performance.now() < deadline);
        stateAfter = processState(bhyve.pid)
        return new Promise(() => undefined)
      },
    }),
  )
  t.equal(stateAfter, 'running')
  t.equal(aborted, true, 'the signal is aborted')
  t.match(error, { code: 'ERR_DISKS_NOT_CAPTURED', vmState: 'running' })
  t.match(error.message, /did not end within 100 ms/)
})

void t.test('metadata that are complete after onFrozen: the attempt does not count', async (t) => {
  const { bhyve, directory, create } = await world(t, { memoryBytes: 4 * MiB, writeRate: 16 * MiB })
  const { files } = await create({ name: 'first' })
  const complete = fs.readFileSync(files.metadata)
  let calls = 0
  const error = await rejection(
    create({
      onFrozen: () => {
        calls++
        const staging = path.join(directory, '.staging')
        for (const stage of fs.readdirSync(staging)) {
          const inbox = path.join(staging, stage, 'in')
          if (fs.existsSync(inbox)) fs.writeFileSync(path.join(inbox, 'ckp.meta'), complete)
        }
      },
    }),
  )
  t.match(error, { code: 'ERR_DISKS_NOT_CAPTURED', vmState: 'running', message: /in 5 attempts/ })
  t.equal(calls, 5)
  t.equal(processState(bhyve.pid), 'running')
})

void t.test('two calls for one VM at once: each captures its own checkpoint', async (t) => {
  const { bhyve, client, create } = await world(t, { memoryBytes: 4 * MiB, writeRate: 16 * MiB })
  let inside = 0
  const onFrozen = async (): Promise<void> => {
    t.equal(++inside, 1, 'one at a time')
    await until(() => processState(bhyve.pid) === 'stopped', 'the VM is held')
    inside--
  }
  await Promise.all([create({ name: 'a', onFrozen }), create({ name: 'b', onFrozen })])
  t.match(await client.listCheckpoints('vm1'), [{ state: 'complete' }, { state: 'complete' }])
  t.equal(processState(bhyve.pid), 'running')
})

void t.test(
  'the record of the hold cannot be written: nothing is sent, and the previous checkpoint is unchanged',
  async (t) => {
    const { bhyve, directory, create } = await world(t, { memoryBytes: MiB })
    await create({})
    const before = contents(directory)
    const full = (): Promise<never> => Promise.reject(new CheckpointError('ERR_NO_SPACE', 'The disk is full'))
    const pool = inlinePool((name) => (name === 'recordHold' ? full() : undefined))
    const client = createClientIn(
      { ...hostEnvironment, pool: () => pool },
      { runDirectory: bhyve.runDirectory, checkpointDirectory: path.dirname(directory) },
    )
    let called = false
    const call = client.createCheckpoint('vm1', {
      onFrozen: () => {
        called = true
      },
    })
    t.match(await rejection(call), { code: 'ERR_NO_SPACE', vm: 'vm1' })
    t.equal(called, false)
    t.strictSame(contents(directory), before)
    t.equal(processState(bhyve.pid), 'running')
  },
)

void t.test('a cancel ends the hold at once', async (t) => {
  const { bhyve, directory, client, create } = await world(t)
  const controller = new AbortController()
  let reason: unknown
  const error = await create({
    signal: controller.signal,
    freezeTimeout: 600_000,
    onFrozen: ({ signal }) => {
      signal.addEventListener('abort', () => {
        reason = signal.reason
      })
      controller.abort()
      return new Promise(() => undefined)
    },
  }).catch((caught: unknown) => caught)
  t.match(error, { name: 'AbortError', begun: true })
  t.equal(reason, error, 'the signal has the reason')
  await until(() => processState(bhyve.pid) === 'running', 'it happens')
  await client.idle()
  t.strictSame(tree(directory), [], 'nothing is left')
})

void t.test('a held VM has not stalled', async (t) => {
  const { bhyve, create } = await world(t)
  const checkpoint = await create({
    stallTimeout: 400,
    onFrozen: async () => {
      const until = performance.now() + 1_500
      while (performance.now() < until) await new Promise((resolve) => setImmediate(resolve))
    },
  })
  t.equal(checkpoint.name, 'checkpoint')
  t.equal(processState(bhyve.pid), 'running')
})

/** A process that holds vm1 and never releases it by itself. */
async function holder(t: Test, { bhyve, directory }: World, freezeTimeout: number): Promise<number> {
  const script = path.join(import.meta.dirname, '../support/freezing.mjs')
  const args = [script, bhyve.runDirectory, path.dirname(directory), String(freezeTimeout)]
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(() => child.kill('SIGKILL'))
  await once(createInterface({ input: child.stdout }), 'line')
  await until(() => processState(bhyve.pid) === 'stopped', 'it happens')
  return child.pid ?? 0
}

for (const dialect of ['descriptor', 'reply'] as const)
  void t.test(`${dialect}: the library's process is killed while it holds the VM`, async (t) => {
    const held = await world(t, { ...slow, dialect })
    process.kill(await holder(t, held, 600_000), 'SIGKILL')
    await until(() => processState(held.bhyve.pid) === 'running', 'it happens')
    // A bhyve whose client left before the reply would be dead now.
    const checkpoint = await held.create({ name: 'next' })
    t.equal(processState(held.bhyve.pid), 'running')
    t.match(await held.client.listCheckpoints('vm1'), [{ name: checkpoint.name, state: 'complete' }])
  })

void t.test(
  'the guard is killed while it holds the VM: the VM continues, and the call rejects',
  async (t) => {
    const { bhyve, create } = await world(t)
    let reason: unknown
    const error = await rejection(
      create({
        freezeTimeout: 600_000,
        onFrozen: async ({ signal }) => {
          process.kill(guardOf(process.pid) ?? NaN, 'SIGKILL')
          await until(() => processState(bhyve.pid) === 'running', 'the VM continues')
          reason = signal.reason
        },
      }),
    )
    t.match(error, { code: 'ERR_DISKS_NOT_CAPTURED', vmState: 'running' })
    t.match(reason, { message: 'the guest runs again' })
  },
)

void t.test('a guard that does not react is killed, and the VM continues', async (t) => {
  const { bhyve, create } = await world(t)
  const checkpoint = await create({
    freezeTimeout: 100,
    onFrozen: () => {
      process.kill(guardOf(process.pid) ?? NaN, 'SIGSTOP')
    },
  })
  t.match(checkpoint, { name: 'checkpoint' }, 'it was captured before the guard was killed')
  t.equal(processState(bhyve.pid), 'running')
})

void t.test('onFrozen throws after the freeze timeout: one rejection, no other', async (t) => {
  const { bhyve, create } = await world(t)
  const error = await rejection(
    create({
      freezeTimeout: 50,
      onFrozen: () => {
        const deadline = performance.now() + 20_000
        while (processState(bhyve.pid) !== 'running' && performance.now() < deadline);
        throw new Error('too late')
      },
    }),
  )
  t.match(error, { code: 'ERR_DISKS_NOT_CAPTURED' })
})

void t.test('the reply of bhyve reaches the library, not the guard', async (t) => {
  const fault = { at: 'device', kind: 'fail' } as const
  const { create } = await world(t, { memoryBytes: 4 * MiB, writeRate: 32 * MiB, dialect: 'reply', fault })
  for (let round = 0; round < 8; round++) {
    const error = await rejection(create({ onFrozen: () => undefined }))
    t.match(error, { code: 'ERR_CHECKPOINT_FAILED', reply: /device/ })
  }
})

void t.test('recovery does not continue a VM that was paused after its hold', async (t) => {
  const held = await world(t)
  process.kill(await holder(t, held, 600_000), 'SIGKILL')
  await until(() => processState(held.bhyve.pid) === 'running', 'the guard continues the VM')
  await until(() => !tree(held.directory).some((name) => name.endsWith('/hold')), 'the record is removed')
  await held.client.pause('vm1', { pid: held.bhyve.pid })
  await held.client.listCheckpoints('vm1')
  t.equal(processState(held.bhyve.pid), 'stopped')
  await held.client.resume('vm1', { pid: held.bhyve.pid })
})

void t.test('the guard and the process are killed: the next call continues the VM', async (t) => {
  const held = await world(t)
  const manager = await holder(t, held, 600_000)
  const guard = guardOf(manager) ?? NaN
  // A stopped guard cannot react to the end of its parent.
  process.kill(guard, 'SIGSTOP')
  process.kill(manager, 'SIGKILL')
  process.kill(guard, 'SIGKILL')
  await until(() => processState(guard) === 'gone' && processState(manager) !== 'running', 'it happens')
  t.equal(processState(held.bhyve.pid), 'stopped')
  await held.client.listCheckpoints('vm1')
  await until(() => processState(held.bhyve.pid) === 'running', 'it happens')
  t.match(await held.create({ name: 'next' }), { name: 'next' })
})

void t.test(
  'a guest that is saved faster than it can be stopped: captured or reported, never in between',
  async (t) => {
    const { bhyve, client } = await world(t, { memoryBytes: MiB })
    for (let round = 0; round < 5; round++) {
      let calls = 0
      const saved = await client
        .createCheckpoint('vm1', {
          name: `r${String(round)}`,
          onFrozen: () => {
            calls++
          },
        })
        .catch((error: unknown) => error as CheckpointError)
      if (saved instanceof Error) t.match(saved, { code: 'ERR_DISKS_NOT_CAPTURED', vmState: 'running' })
      else t.ok(calls >= 1 && saved.frozenMs !== undefined, 'captured')
      t.equal(processState(bhyve.pid), 'running')
    }
  },
)

void t.test('options that make no sense are refused before anything is sent', async (t) => {
  const { create, directory } = await world(t, { memoryBytes: MiB })
  for (const options of [
    { onFrozen: 1 as never },
    { onFrozen: () => undefined, poweroff: true },
    { onFrozen: () => undefined, freezeTimeout: 0 },
  ])
    t.match(await rejection(create(options)), { code: 'ERR_INVALID_OPTION', vm: 'vm1' })
  t.equal(fs.existsSync(directory), false)
})
