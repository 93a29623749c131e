/** Hostile names are either rejected before any system call, or accepted by all calls and stored byte for byte. */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedFleet } from 'bhyve-checkpoint/simulator'
import { rejection, scratch, tree } from '../support/index.js'

const MiB = 1024 * 1024
const invalid: unknown[] = [
  '',
  '.',
  '..',
  'a/b',
  '/',
  '/etc/passwd',
  '../up',
  'nul\0byte',
  'new\nline',
  'tab\there',
  '\u007f',
  '\u0085',
  '\ud800',
  'n'.repeat(300),
  undefined,
  null,
  5,
  {},
  Object.create(null),
  ['a'],
]
const valid = [
  '-rf',
  '--',
  'a b',
  ' ',
  'a.ckp',
  'a.ckp.kern',
  'a.ckp.manifest',
  '.staging',
  '.hidden',
  '...',
  'a.b.c',
  'after.update.1',
  'after',
  'after.update',
  'caf\u00e9',
  'cafe\u0301',
  '\ufeffbom',
  '日本語',
  '🐡',
  '%s%n',
  '"quoted"',
  "it's",
  'back\\slash',
  '*',
  '$HOME',
  'n'.repeat(150),
]

t.test('invalid names are rejected before any file is created', async (t) => {
  const directory = scratch(t)
  const client = createClient({ runDirectory: directory, checkpointDirectory: path.join(directory, 'c') })
  for (const name of invalid as string[]) {
    const what = JSON.stringify(name)?.slice(0, 40)
    if (name !== undefined) {
      const created = await rejection(client.createCheckpoint('vm1', { name }))
      t.equal(created.code, 'ERR_INVALID_CHECKPOINT_NAME', `create ${what}`)
    }
    for (const call of [
      client.getCheckpoint('vm1', name),
      client.destroyCheckpoint('vm1', name),
      client.verifyCheckpoint('vm1', name),
    ]) {
      t.equal((await rejection(call)).code, 'ERR_INVALID_CHECKPOINT_NAME', what)
    }
    for (const call of [
      client.createCheckpoint(name),
      client.listCheckpoints(name),
      client.destroyAll(name),
    ]) {
      t.equal((await rejection(call)).code, 'ERR_INVALID_VM_NAME', `VM ${what}`)
    }
  }
  t.strictSame(tree(directory), [])
})

t.test('valid names work in all calls and are stored byte for byte', async (t) => {
  const directory = scratch(t)
  const fleet = await SimulatedFleet.start({ vms: ['vm1'], memoryBytes: MiB / 4 })
  t.teardown(() => fleet.stop())
  const client = createClient({
    runDirectory: fleet.runDirectory,
    checkpointDirectory: directory,
    dialect: 'descriptor',
  })
  for (const name of valid) {
    const checkpoint = await client.createCheckpoint('vm1', { name })
    t.equal(checkpoint.path, path.join(directory, 'vm1', `${name}.ckp`), name)
    t.ok(fs.readdirSync(path.join(directory, 'vm1')).includes(`${name}.ckp`), `${name}: byte for byte`)
    t.match(await client.getCheckpoint('vm1', name), { name })
    t.match(await client.verifyCheckpoint('vm1', name), { ok: true })
  }
  const listed = await client.listCheckpoints('vm1')
  t.strictSame(listed.map(({ name }) => name).sort(), [...valid].sort())
  t.ok(listed.every(({ state }) => state === 'complete'))
  for (const name of valid) {
    await client.destroyCheckpoint('vm1', name)
    t.match(await rejection(client.getCheckpoint('vm1', name)), { code: 'ERR_CHECKPOINT_NOT_FOUND' }, name)
  }
  t.strictSame(tree(directory), ['vm1/', 'vm1/.staging/'])
})

t.test('VMs with unusual names can be saved, listed and destroyed', async (t) => {
  const directory = scratch(t)
  const vms = ['-rf', 'a b', '.staging', 'checkpoint', 'a.b', 'caf\u00e9', 'cafe\u0301', '🐡']
  const fleet = await SimulatedFleet.start({ vms, memoryBytes: MiB / 4 })
  t.teardown(() => fleet.stop())
  const client = createClient({ runDirectory: fleet.runDirectory, checkpointDirectory: directory })
  for (const vm of vms) {
    t.match(await client.createCheckpoint(vm), { vm, path: path.join(directory, vm, 'checkpoint.ckp') })
    t.match(await client.listCheckpoints(vm), [{ vm, state: 'complete' }])
  }
  for (const vm of vms) t.strictSame(await client.destroyAll(vm), ['checkpoint'], vm)
  t.strictSame(tree(directory), [])
})
