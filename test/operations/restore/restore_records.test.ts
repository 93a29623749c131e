/** The restore record: written before the start, and revoked only if the guest cannot have run. */
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { AbortError } from 'bhyve-checkpoint'
import {
  holdCheckpoint,
  inspectForRestore,
  recordRestore,
  revokeRestore,
} from '../../../dist/store/catalog/restore_records.js'
import { childEnvironment, rejection, scratch, until } from '../../support/index.js'
import { changeManifest, manifestOf, putSet } from '../../support/sets.js'
import { native, isAlive, World, codesOf, watched } from '../../support/restore_world.js'

t.test('restore: the record remains when the restoring process is killed', async (t) => {
  const world = new World(t)
  await world.suspended()
  const gate = path.join(world.root, 'gate')
  const bhyve = world.script({ gate })
  const script = fileURLToPath(new URL('../../support/restoring.mjs', import.meta.url))
  const manager = spawn(
    process.execPath,
    [script, world.runDirectory, world.checkpointDirectory, 'suspend', bhyve],
    { env: childEnvironment(), stdio: 'ignore' },
  )
  const pid = await world.started(bhyve)
  const gone = new Promise((resolve) => manager.once('exit', resolve))
  manager.kill('SIGKILL')
  await gone
  t.ok(isAlive(pid), 'bhyve is still running')
  const other = { args: world.args, bhyve: world.script() }
  t.strictSame(codesOf(await rejection(world.client.restore('vm1', 'suspend', other))), ['already-restored'])
  fs.writeFileSync(gate, '')
  await until(async () => (await world.client.listVirtualMachines())[0]?.state === 'running', 'the VM')
  t.strictSame(codesOf(await rejection(world.client.restore('vm1', 'suspend', other))), [
    'already-running',
    'already-restored',
  ])
  await world.client.createCheckpoint('vm1', { name: 'later' })
  t.strictSame(world.digests('later'), world.digests('suspend'))
  // The restore is unconfirmed, so the checkpoint may be the only state of the VM.
  t.strictSame((await world.client.pruneCheckpoints('vm1', { maxBytes: 0 })).removed, [])
  t.match(await world.client.suspendedCheckpoint('vm1'), { name: 'suspend' })
})

t.test('restore: starts nothing if the record cannot be written', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const bhyve = world.script()
  const planning = world.client.planRestore('vm1', 'a', { args: world.args, bhyve })
  t.match(await planning, { command: bhyve })
  t.strictSame((await planning).blockers, [])
  changeManifest(world.directory, 'a', { version: 99 })
  const error = await rejection(world.client.restore('vm1', 'a', { args: world.args, bhyve }))
  t.match(error, { code: 'ERR_RESTORE_BLOCKED', blockers: [{ code: 'damaged', message: /newer release/ }] })
  t.equal(world.pidOf(bhyve), 0)
})

t.test('restore: a cancel before the start revokes the record', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const bhyve = world.script()
  const controller = new AbortController()
  const client = watched(world, (job) => {
    if (job === 'holdCheckpoint') controller.abort()
  })
  const call = client.restore('vm1', 'a', { args: world.args, bhyve, signal: controller.signal })
  t.ok((await call.catch((reason: unknown) => reason)) instanceof AbortError)
  await client.idle()
  t.equal(world.pidOf(bhyve), 0)
  t.equal(world.manifest('a').restoredAt, undefined)
})

t.test('restore: reports a record that cannot be revoked', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const client = watched(world, (job) => {
    return job === 'revokeRestore' ? Promise.reject(new Error('the disk is gone')) : undefined
  })
  const error = await rejection(
    client.restore('vm1', 'a', { args: world.args, bhyve: world.script({ instead: 'exit 1' }) }),
  )
  t.match(error, { code: 'ERR_RESTORE_FAILED', vmState: 'off' })
  t.match(
    error.message,
    /status 1.*Revoking the restore record.*\(the disk is gone\).*still counts as restored.*option 'again'/s,
  )
})

t.test('restore: ignores failed polls while bhyve runs', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const gate = path.join(world.root, 'gate')
  const bhyve = world.script({ gate })
  let failures = 0
  const client = watched(world, (job) => {
    if (job !== 'locateSocket' || world.pidOf(bhyve) === 0 || failures === 3) return undefined
    if (++failures === 3) fs.writeFileSync(gate, '')
    return Promise.reject(new Error('no descriptor is left'))
  })
  t.equal((await client.restore('vm1', 'a', { args: world.args, bhyve })).pid, world.pidOf(bhyve))
  t.equal(failures, 3)
})

t.test('restore: keeps the record of a guest that started and ended between two polls', async (t) => {
  const world = new World(t)
  await world.suspended()
  const socket = path.join(world.runDirectory, 'vm1')
  const program = `require('node:net').createServer().listen(process.argv[1], () => process.exit(3))`
  const instead = `rm -f '${socket}'; exec '${process.execPath}' -e "${program}" '${socket}'`
  const bhyve = world.script({ instead })
  const client = watched(world, (job) => {
    const isUp = world.pidOf(bhyve) > 0 && isAlive(world.pidOf(bhyve))
    return job === 'locateSocket' && isUp ? Promise.reject(new Error('bhyve is still running')) : undefined
  })
  const error = await rejection(client.restore('vm1', 'suspend', { args: world.args, bhyve }))
  t.match(error, { code: 'ERR_RESTORE_FAILED', vmState: 'off', message: /status 3.*The guest may have run/s })
  t.type(world.manifest('suspend').restoredAt, 'string', 'the restore record stays')
  t.equal(await client.suspendedCheckpoint('vm1'), undefined)
  const blocked = await rejection(
    client.restore('vm1', 'suspend', { args: world.args, bhyve: world.script() }),
  )
  t.match(blocked, { code: 'ERR_RESTORE_BLOCKED', blockers: [{ code: 'already-restored' }] })
})

t.test('restore: keeps the record if it is unknown whether the guest has run', async (t) => {
  const world = new World(t)
  await world.suspended()
  const bhyve = world.script({ instead: 'exit 3' })
  const client = watched(world, (job) =>
    job === 'locateSocket' && world.pidOf(bhyve) > 0
      ? Promise.reject(new Error('the poll failed'))
      : undefined,
  )
  const error = await rejection(client.restore('vm1', 'suspend', { args: world.args, bhyve }))
  t.match(error, { code: 'ERR_RESTORE_FAILED', message: /status 3.*The guest may have run/s })
  t.type(world.manifest('suspend').restoredAt, 'string')
})

t.test('restore: does not revoke or use the record of another restore', async (t) => {
  const directory = path.join(scratch(t), 'vm1')
  putSet(directory, 'a')
  const { identity } = inspectForRestore(directory, 'vm1', 'a')
  const record = (at: string) => recordRestore(directory, 'vm1', 'a', identity, { at, again: true })!
  const first = record('2026-01-01T00:00:00.000Z')
  const second = record('2026-01-02T00:00:00.000Z')
  const before = manifestOf(directory, 'a')
  t.match(before, { restoredAt: second.at, restores: [{ at: first.at }, { at: second.at }] })
  t.equal(revokeRestore(directory, 'a', first), false)
  t.strictSame(manifestOf(directory, 'a'), before)
  t.equal(holdCheckpoint(directory, 'a', identity, first), undefined)
  const held = holdCheckpoint(directory, 'a', identity, second)
  native.close(held!.descriptors.staging)
  t.equal(revokeRestore(directory, 'a', second), true)
  t.match(manifestOf(directory, 'a'), { restoredAt: first.at, restores: [{ at: first.at }] })
})
