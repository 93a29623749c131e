/** A restore and concurrent calls on the same checkpoint: locks, replacements, and a second restore. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { type CheckpointError } from 'bhyve-checkpoint'
import { createClientIn } from '../../../dist/client/client.js'
import { hostEnvironment } from '../../../dist/client/environment.js'
import {
  beginRestore,
  holdCheckpoint,
  inspectForRestore,
  recordRestore,
} from '../../../dist/store/catalog/restore_records.js'
import {
  childEnvironment,
  inlinePool,
  intercept,
  rejection,
  runScript,
  scratch,
} from '../../support/index.js'
import { manifestOf, putSet } from '../../support/sets.js'
import { native, isAlive, World, codesOf, watched } from '../../support/restore_world.js'

t.test('restore: the checkpoint cannot be destroyed while bhyve starts', async (t) => {
  const world = new World(t)
  await world.saved('a', 'b')
  const gate = path.join(world.root, 'gate')
  const bhyve = world.script({ gate })
  const digests = world.digests('a')
  const restoring = world.client.restore('vm1', 'a', { args: world.args, bhyve })
  await world.started(bhyve)
  const events: string[] = []
  const destroying = world.newClient().destroyCheckpoint('vm1', 'a')
  void destroying.then(() => events.push(world.isServed() ? 'destroyed' : 'destroyed too early'))
  void restoring.then(() => events.push('restored'))
  // Readers share the lock, so these calls return while the destroy waits.
  for (let call = 0; call < 20; call++) {
    t.match(await world.client.getCheckpoint('vm1', 'a'), { restoredAt: Date })
    t.strictSame(world.digests('a'), digests)
  }
  t.ok(fs.lstatSync(path.join(world.runDirectory, 'vm1')).isSocket(), 'the stale socket does not count')
  t.strictSame(events, [])
  fs.writeFileSync(gate, '')
  const { pid } = await restoring
  await destroying
  // Once bhyve serves its socket, the checkpoint may be destroyed. The order of the two events does not matter.
  t.strictSame(events.sort(), ['destroyed', 'restored'])
  t.ok(isAlive(pid))
  await world.client.createCheckpoint('vm1', { name: 'c' })
  t.strictSame(world.digests('c'), digests)
})

t.test('restore: of two concurrent calls, only one starts bhyve', async (t) => {
  for (const [names, again] of [
    [['a', 'a'], false],
    [['a', 'a'], true],
    [['a', 'b'], false],
  ] as const) {
    const world = new World(t)
    await world.saved('a', 'b')
    const scripts = names.map(() => world.script())
    const calls = names.map((name, index) =>
      world.newClient().restore('vm1', name, { args: world.args, bhyve: scripts[index], again }),
    )
    const outcomes = await Promise.allSettled(calls)
    const failed = outcomes.filter((outcome) => outcome.status === 'rejected')
    t.equal(failed.length, 1, `${names.join()} ${again}`)
    t.match(failed[0]?.reason, { code: 'ERR_RESTORE_BLOCKED' })
    t.ok(codesOf(failed[0]?.reason as CheckpointError)?.includes('already-running'))
    t.equal(scripts.filter((script) => world.pidOf(script) > 0).length, 1)
    const restores = [...new Set(names)].flatMap((name) => (world.manifest(name).restores ?? []) as unknown[])
    t.equal(restores.length, 1, 'one restore record')
  }
})

const needsRoot = { skip: process.geteuid?.() === 0 ? false : 'needs root' }

t.test('restore: a lock that another user holds on the directory does not matter', needsRoot, async (t) => {
  const world = new World(t)
  await world.saved('a')
  for (const one of [world.root, world.checkpointDirectory, world.directory]) fs.chmodSync(one, 0o755)
  const holder = spawn('flock', ['--exclusive', world.directory, 'sh', '-c', 'echo held; exec cat'], {
    uid: 65534,
    gid: 65534,
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  t.teardown(() => holder.kill())
  await once(holder.stdout, 'data')
  const { pid } = await world.client.restore('vm1', 'a', { args: world.args, bhyve: world.script() })
  t.ok(isAlive(pid))
  t.strictSame(fs.readdirSync(path.join(world.directory, '.staging')), [], 'the restore has removed its lock')
})

t.test('restore: holds a lock, and recovery removes the lock of a killed process', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const staging = path.join(world.directory, '.staging')
  const lock = path.join(staging, 'restore.lock')
  const gate = path.join(world.root, 'gate')
  const bhyve = world.script({ gate })
  const script = fileURLToPath(new URL('../../support/restoring.mjs', import.meta.url))
  const words = [script, world.runDirectory, world.checkpointDirectory, 'a', bhyve]
  const manager = spawn(process.execPath, words, { env: childEnvironment(), stdio: 'ignore' })
  await world.started(bhyve)
  t.ok(fs.existsSync(lock))
  t.match(await world.client.listCheckpoints('vm1'), [{ name: 'a', state: 'complete' }])
  t.throws(() => beginRestore(world.directory, 'a'), { code: 'ERR_CHECKPOINT_BUSY', path: lock })
  t.ok(fs.existsSync(lock), 'a held lock is kept')
  manager.kill('SIGKILL')
  await once(manager, 'exit')
  t.ok(fs.existsSync(lock))
  await world.kill(world.pidOf(bhyve))
  t.match(await world.client.listCheckpoints('vm1'), [{ name: 'a' }])
  t.notOk(fs.existsSync(lock), 'recovery removes the lock of a killed process')
  await world.client.restore('vm1', 'a', { args: world.args, bhyve: world.script(), again: true })
  t.strictSame(fs.readdirSync(staging), [])
})

t.test('list: needs no exclusive lock during a restore', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const { runDirectory, checkpointDirectory, directory } = world
  const pool = inlinePool()
  const environment = { ...hostEnvironment, pool: () => pool }
  const client = createClientIn(environment, { runDirectory, checkpointDirectory })
  const { restoreLock } = beginRestore(directory, 'a').descriptors
  const modes: unknown[] = []
  intercept(t, 'lock', (_, mode) => void modes.push(mode))
  const modesOfListing = async (): Promise<unknown[]> => {
    modes.length = 0
    t.match(await client.listCheckpoints('vm1'), [{ name: 'a' }])
    return [...new Set(modes)]
  }
  t.strictSame(await modesOfListing(), ['shared'])
  native.close(restoreLock)
  t.strictSame(await modesOfListing(), ['shared', 'exclusive'], 'the lock of an ended restore is removed')
  t.strictSame(await modesOfListing(), ['shared'])
  t.strictSame(fs.readdirSync(path.join(directory, '.staging')), [])
  const again = beginRestore(directory, 'a').descriptors.restoreLock
  t.strictSame(await client.destroyAll('vm1'), ['a'])
  t.ok(fs.existsSync(directory), 'a restore in progress keeps the directory')
  native.close(again)
  t.strictSame(await client.destroyAll('vm1'), [])
  t.notOk(fs.existsSync(directory))
})

t.test('restore: of several processes, only one starts bhyve', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const scripts = [0, 1, 2].map(() => world.script())
  const ended = await Promise.all(
    scripts.map((bhyve) => {
      return runScript('restoring.mjs', [world.runDirectory, world.checkpointDirectory, 'a', bhyve, 'again'])
    }),
  )
  const outcomes = ended.map(({ stdout }) => JSON.parse(stdout) as { pid?: number; code?: string })
  t.equal(outcomes.filter(({ pid }) => pid !== undefined).length, 1)
  t.equal(outcomes.filter(({ code }) => code === 'ERR_RESTORE_BLOCKED').length, 2)
  t.equal(scripts.filter((script) => world.pidOf(script) > 0).length, 1)
})

t.test('restore: rejects a checkpoint that is replaced before the start', async (t) => {
  for (const when of ['recordRestore', 'holdCheckpoint']) {
    const world = new World(t)
    await world.saved('a', 'b')
    const bhyve = world.script()
    const client = watched(world, (job) => {
      if (job !== when) return
      for (const extension of ['', '.kern', '.meta', '.manifest']) {
        const [from, to] = ['b', 'a'].map((name) => path.join(world.directory, `${name}.ckp${extension}`))
        fs.renameSync(from!, to!)
      }
    })
    const error = await rejection(client.restore('vm1', 'a', { args: world.args, bhyve }))
    t.match(error, { code: 'ERR_CHECKPOINT_BUSY', message: /replaced/ }, when)
    t.equal(world.pidOf(bhyve), 0)
    t.equal(world.manifest('a').restoredAt, undefined, 'the new checkpoint has no restore record')
  }
})

t.test('restore: rejects files that another tool has rewritten beside the manifest', async (t) => {
  const directory = path.join(scratch(t), 'vm1')
  putSet(directory, 'a')
  const { identity } = inspectForRestore(directory, 'vm1', 'a')
  const restore = { at: '2026-01-01T00:00:00.000Z', again: false }
  const record = recordRestore(directory, 'vm1', 'a', identity, restore)!
  fs.utimesSync(path.join(directory, 'a.ckp'), 1, 1)
  const before = manifestOf(directory, 'a')
  t.equal(holdCheckpoint(directory, 'a', identity, record), undefined)
  t.equal(recordRestore(directory, 'vm1', 'a', identity, restore), undefined)
  t.strictSame(manifestOf(directory, 'a'), before)
})
