/** The id of a checkpoint, the host and the dialect that saved it, and its restores. */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import t from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { scratch } from '../../support/index.js'
import { changeManifest, host, manifestOf, putSet } from '../../support/sets.js'
import { store } from '../../support/stored.js'
import { start } from '../../support/suspending.js'

const uuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

/** A time that utimes() sets exactly, so that the manifest is that of the files. */
const ofTheseFiles = { memoryModifiedMs: 1.6e12 }

function copyAll(from: string, to: string, as: string, name: string): void {
  fs.mkdirSync(to, { recursive: true })
  for (const file of fs.readdirSync(from).filter((entry) => entry.startsWith(`${name}.ckp`)))
    fs.copyFileSync(path.join(from, file), path.join(to, file.replace(name, as)))
}

t.test(
  'the id is that of the manifest, survives changes and copies, and changes with a replacement',
  async (t) => {
    const { client, directory } = await start(t)
    const { id } = await client.createCheckpoint('vm1')
    t.match(id, uuid)
    t.equal(manifestOf(directory, 'checkpoint').id, id)
    await client.pinCheckpoint('vm1', 'checkpoint')
    await client.labelCheckpoint('vm1', 'checkpoint', { a: 'b' })
    t.match(await client.listCheckpoints('vm1'), [{ id }])
    const root = scratch(t)
    copyAll(directory, path.join(root, 'vm2'), 'other', 'checkpoint')
    t.match(await createClient({ checkpointDirectory: root }).listCheckpoints('vm2'), [
      { id, labels: { a: 'b' } },
    ])
    const next = await client.createCheckpoint('vm1')
    t.match(next.id, uuid)
    t.not(next.id, id)
    const suspended = await client.suspend('vm1')
    t.equal((await client.suspendedCheckpoint('vm1'))?.id, suspended.id)
    t.not(suspended.id, next.id)
  },
)

t.test('without a manifest, the id is derived from the content', async (t) => {
  const { client, directory, root, put } = store(t)
  put('a')
  put('b', 60_000)
  fs.truncateSync(path.join(directory, 'b.ckp.kern'), 0)
  fs.writeFileSync(path.join(directory, 'b.ckp.kern'), Buffer.alloc(24472, 'another time stamp counter'))
  const [b, a] = await client.listCheckpoints('vm1')
  t.match(a?.id, uuid)
  t.match(a?.id, /^.{14}8.{4}[89ab]/, 'a UUID of version 8')
  t.not(a?.id, b?.id, 'two saves differ in their kernel files')
  t.equal((await client.getCheckpoint('vm1', 'a')).id, a?.id)
  copyAll(directory, path.join(root, 'vm2'), 'copy', 'a')
  t.match(await client.listCheckpoints('vm2'), [{ name: 'copy', id: a?.id }], 'a copy has other times')
  await client.pinCheckpoint('vm1', 'a')
  t.match(await client.getCheckpoint('vm1', 'a'), { id: a?.id, pinned: true }, 'its new manifest has that id')
  put('damaged')
  fs.rmSync(path.join(directory, 'damaged.ckp.kern'))
  const damaged = (await client.listCheckpoints('vm1')).find(({ name }) => name === 'damaged')
  t.match(damaged, { state: 'damaged' })
  t.notOk('id' in damaged!, 'a kernel file is needed')
})

t.test(
  'a manifest without an id, with a hostile one, or of other files does not identify the checkpoint',
  async (t) => {
    const { client, directory } = store(t)
    const id = '3f0c8d4e-1111-4222-8333-444455556666'
    const idOf = async (): Promise<unknown> => (await client.getCheckpoint('vm1', 'a')).id
    putSet(directory, 'a', { manifest: false })
    const derived = await idOf()
    putSet(directory, 'a', { manifest: ofTheseFiles })
    t.equal(await idOf(), derived, 'an early manifest has no id')
    for (const odd of [1, null, {}, '../../etc', '\u001b[2J', 'A'.repeat(1e5)]) {
      changeManifest(directory, 'a', { id: odd })
      t.equal(await idOf(), derived, JSON.stringify(odd).slice(0, 20))
    }
    changeManifest(directory, 'a', { id })
    t.equal(await idOf(), id)
    changeManifest(directory, 'a', { memoryModifiedMs: 1e12 })
    t.equal(await idOf(), derived, 'another tool has written the files since')
  },
)

t.test('a checkpoint has the host and the dialect that saved it', async (t) => {
  const { client, directory } = await start(t)
  const checkpoint = await client.createCheckpoint('vm1')
  const cpuModel = os.cpus()[0]?.model
  t.match(checkpoint, {
    dialect: 'descriptor',
    host: { name: os.hostname(), release: os.release(), cpuModel },
  })
  t.notOk('restores' in checkpoint)
  putSet(directory, 'early', { manifest: ofTheseFiles })
  const early = await client.getCheckpoint('vm1', 'early')
  t.strictSame(early.host, { name: '', release: host.release, cpuModel: host.cpuModel })
  for (const odd of [
    { ...host, name: '\u001b]0;title\u0007' },
    { ...host, name: {} },
  ]) {
    changeManifest(directory, 'early', { host: odd, dialect: 'morse' })
    const listed = await client.getCheckpoint('vm1', 'early')
    t.match(listed.host, { name: '' })
    t.notOk('dialect' in listed)
  }
  changeManifest(directory, 'early', { host: { ...host, cpuModel: '\u001b[2J' } })
  t.notOk('host' in (await client.getCheckpoint('vm1', 'early')))
  fs.rmSync(path.join(directory, 'checkpoint.ckp.manifest'))
  const bare = await client.getCheckpoint('vm1', 'checkpoint')
  t.strictSame([bare.host, bare.dialect, bare.labels], [undefined, undefined, {}])
})

t.test('a checkpoint lists its restores', async (t) => {
  const { client, directory } = store(t)
  const [first, second] = ['2026-01-02T03:04:05.000Z', '2026-02-03T04:05:06.000Z']
  const restores = [{ at: first, again: false, served: true }, { at: 'never' }, { at: second, again: true }]
  putSet(directory, 'a', { manifest: { restoredAt: second, restores } })
  const { restores: found, restoredAt } = await client.getCheckpoint('vm1', 'a')
  t.strictSame(found, [
    { at: new Date(first), again: false },
    { at: new Date(second), again: true },
  ])
  t.strictSame(restoredAt, new Date(second))
  const many = Array.from({ length: 1000 }, () => ({ at: first, again: false }))
  changeManifest(directory, 'a', { restores: many })
  t.equal((await client.getCheckpoint('vm1', 'a')).restores?.length, 32)
})
