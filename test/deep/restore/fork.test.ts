/** Starts other VMs from a checkpoint (`as`), on copies of its disks. */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { AbortError } from 'bhyve-checkpoint'
import { contents, openDescriptors, rejection, until } from '../../support/index.js'
import { changeManifest } from '../../support/sets.js'
import { codesOf, isAlive, native } from '../../support/restore_world.js'
import { DiskWorld } from '../../support/disk_world.js'

const clone = { as: 'vm2', disks: 'clone' } as const

t.test('fork: starts a second VM on copies while the first runs on', async (t) => {
  const world = new DiskWorld(t)
  const first = await world.begun()
  await world.client.createCheckpoint('vm1', { name: 'a' })
  world.addSnapshots('a')
  for (const image of world.images) fs.writeFileSync(image, 'now')
  const before = contents(world.directory)
  const { pid, logFile, keptDisks, clonedDisks } = await world
    .with()
    .restore('vm1', 'a', { ...clone, args: world.args, bhyve: world.script() })
  t.ok(isAlive(first))
  t.ok(isAlive(pid))
  const copies = world.images.map((image) => `${image}.vm2`)
  t.strictSame(clonedDisks, copies)
  t.equal(keptDisks, undefined)
  for (const copy of copies) t.equal(fs.readFileSync(copy, 'utf8'), 'then')
  t.strictSame(world.contents(), ['now', 'now'], 'the disks of the first VM are not changed')
  t.strictSame(contents(world.directory), before, 'nor its checkpoint: there is no restore record')
  t.equal(logFile, path.join(world.checkpointDirectory, 'vm2/restore.log'))
  const command = world.commandOf(pid)
  for (const copy of copies) t.ok(command.some((word) => word.includes(copy)))
  t.strictSame(
    command.filter((word) => /\.img(?!\.vm2)/.test(word)),
    [],
  )
  t.equal(command.filter((word) => word !== '').at(-1), 'vm2')
  const machines = await world.client.listVirtualMachines()
  t.match(machines, [
    { vm: 'vm1', pid: first, state: 'running' },
    { vm: 'vm2', pid, state: 'running' },
  ])
  await world.client.createCheckpoint('vm2', { name: 'b' })
  const again = world.with().restore('vm1', 'a', { ...clone, args: world.args, bhyve: world.script() })
  t.strictSame(codesOf(await rejection(again)), ['already-running'])
  t.match(await world.client.verifyCheckpoint('vm2', 'b', { depth: 'content' }), { ok: true })
})

t.test('fork: ten VMs are started from one checkpoint at once', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const client = world.with()
  const names = Array.from({ length: 10 }, (_, index) => `fork${index}`)
  const restored = await Promise.all(
    names.map((as) =>
      client.restore('vm1', 'a', { as, disks: 'clone', args: world.args, bhyve: world.script() }),
    ),
  )
  t.equal(new Set(restored.map(({ pid }) => pid)).size, 10)
  t.equal(new Set(restored.flatMap(({ clonedDisks }) => clonedDisks)).size, 20)
  t.equal(world.manifest('a').restoredAt, undefined)
  const running = (await world.client.listVirtualMachines()).filter(({ state }) => state === 'running')
  t.strictSame(running.map(({ vm }) => vm).sort(), names)
})

t.test('fork: of two forks under one name, only one starts', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const scripts = [world.script(), world.script()]
  const outcomes = await Promise.allSettled(
    scripts.map((bhyve) => world.with().restore('vm1', 'a', { ...clone, args: world.args, bhyve })),
  )
  t.equal(outcomes.filter(({ status }) => status === 'fulfilled').length, 1)
  t.equal(scripts.filter((script) => world.pidOf(script) > 0).length, 1)
  t.equal(world.calls().filter(({ call }) => call === 'clone').length, 2, 'the other one copied nothing')
})

t.test('fork: if the start fails, the copies and the new directory are removed', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const options = { ...clone, args: world.args }
  const logFile = path.join(world.root, 'log')
  const bhyve = world.script({ instead: 'echo no memory; exit 1' })
  const error = await rejection(world.with().restore('vm1', 'a', { ...options, bhyve, logFile }))
  t.match(error, { code: 'ERR_RESTORE_FAILED', vmState: 'off', reply: 'no memory' })
  t.match(error.message, /did not start from checkpoint 'a' of VM 'vm1' as VM 'vm2'/)
  for (const image of world.images) t.notOk(fs.existsSync(`${image}.vm2`))
  t.notOk(fs.existsSync(path.join(world.checkpointDirectory, 'vm2')))
  const second = await rejection(world.with().restore('vm1', 'a', { ...options, bhyve }))
  t.equal(second.path, path.join(world.checkpointDirectory, 'vm2/restore.log'))
  t.ok(fs.existsSync(second.path ?? ''), 'a log stays')
  const failing = world.with({ fail: { removeClones: 'it is busy' } })
  const left = await rejection(failing.restore('vm1', 'a', { ...options, bhyve }))
  t.match(left.message, /The copies of '.*a\.img' for VM 'vm2' were not removed \(it is busy\)/)
})

t.test('fork: keeps the copies of a guest that may have run', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const socket = path.join(world.runDirectory, 'vm2')
  const program = `require('node:net').createServer().listen(process.argv[1], () => process.exit(3))`
  const bhyve = world.script({ instead: `exec '${process.execPath}' -e "${program}" '${socket}'` })
  const copies = world.images.map((image) => `${image}.vm2`)
  const attempt = (): Promise<unknown> => {
    for (const file of [socket, ...copies]) fs.rmSync(file, { force: true })
    const call = world.with().restore('vm1', 'a', { ...clone, args: world.args, bhyve })
    return call.catch((reason: unknown) => reason)
  }
  let outcome = await attempt()
  // A poll may see the socket before the process ends. Then the call resolves.
  for (let more = 50; more > 0 && !(outcome instanceof Error); more--) outcome = await attempt()
  t.match(outcome, { message: /may have run.*the copies of the disks were not removed/s })
  for (const copy of copies) t.ok(fs.existsSync(copy))
})

t.test('fork: copies that were made before a failure or a cancel are removed', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const options = { ...clone, args: world.args, bhyve: world.script() }
  fs.writeFileSync(`${world.images[1] ?? ''}.vm2`, 'of somebody else')
  const exists = await rejection(world.with().restore('vm1', 'a', options))
  t.match(exists.message, /EEXIST/)
  t.notOk(fs.existsSync(`${world.images[0] ?? ''}.vm2`), 'the copy of this call is removed')
  t.equal(fs.readFileSync(`${world.images[1] ?? ''}.vm2`, 'utf8'), 'of somebody else')
  fs.rmSync(`${world.images[1] ?? ''}.vm2`)
  const controller = new AbortController()
  const client = world.with({ onCall: () => controller.abort() })
  const call = client.restore('vm1', 'a', { ...options, signal: controller.signal })
  t.ok((await call.catch((reason: unknown) => reason)) instanceof AbortError)
  await client.idle()
  for (const image of world.images) t.notOk(fs.existsSync(`${image}.vm2`))
  t.equal(world.pidOf(options.bhyve), 0)
})

t.test('fork: the checkpoint cannot be destroyed while bhyve starts', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const gate = path.join(world.root, 'gate')
  const bhyve = world.script({ gate })
  const forking = world.with().restore('vm1', 'a', { ...clone, args: world.args, bhyve })
  await world.started(bhyve)
  let isDestroyed = false
  const destroying = world
    .with()
    .destroyCheckpoint('vm1', 'a')
    .then(() => (isDestroyed = true))
  for (let call = 0; call < 10; call++) await world.client.getCheckpoint('vm1', 'a')
  t.notOk(isDestroyed)
  fs.writeFileSync(gate, '')
  const { pid } = await forking
  await destroying
  t.ok(isAlive(pid))
})

t.test('fork: a suspended state stays what it was', async (t) => {
  const world = new DiskWorld(t)
  await world.suspended()
  world.addSnapshots('suspend')
  const options = { args: world.args, bhyve: world.script() }
  await world.with().restore('vm1', 'suspend', { ...options, ...clone })
  t.match(await world.client.suspendedCheckpoint('vm1'), { name: 'suspend' })
  const original = { args: world.args, bhyve: world.script(), disks: 'rollback' } as const
  await world.with().restore('vm1', 'suspend', original)
  t.equal(await world.client.suspendedCheckpoint('vm1'), undefined)
  // A state that was restored can still be used for other VMs.
  await world
    .with()
    .restore('vm1', 'suspend', { ...options, bhyve: world.script(), as: 'vm3', disks: 'clone' })
  t.equal((await world.client.listVirtualMachines()).filter(({ state }) => state === 'running').length, 3)
})

t.test('fork: rejects the name of a VM with a suspended state', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const { pid } = await world
    .with()
    .restore('vm1', 'a', { ...clone, args: world.args, bhyve: world.script() })
  await world.client.suspend('vm2')
  await until(() => !isAlive(pid), 'its end')
  const options = { ...clone, args: world.args, bhyve: world.script() }
  const error = await rejection(world.with().restore('vm1', 'a', options))
  t.match(error, { blockers: [{ code: 'name-in-use', message: /'vm2' has a suspended state 'suspend'/ }] })
  t.match(await world.client.suspendedCheckpoint('vm2'), { name: 'suspend' })
})

t.test('fork: is refused under the name of a VM whose disks are half put back', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const staging = path.join(world.checkpointDirectory, 'vm2/.staging')
  fs.mkdirSync(staging, { recursive: true, mode: 0o700 })
  const disk = path.join(world.root, 'other.img')
  fs.writeFileSync(disk, 'now')
  fs.writeFileSync(`${disk}@b`, 'then')
  const id = '01234567-89ab-4def-8123-456789abcdef'
  const owner = { vm: 'vm2', id: 'b', directory: path.dirname(staging) }
  const disks = [{ kind: 'copy', disks: [{ path: disk, snapshot: `${disk}@b` }] }]
  const record = path.join(staging, 'disks.rollback')
  const rollback = { id, vm: 'vm2', checkpoint: 'b', owner, disks }
  fs.writeFileSync(record, JSON.stringify(rollback))
  const options = { ...clone, args: world.args, bhyve: world.script() }
  const error = await rejection(world.with().restore('vm1', 'a', options))
  t.match(error, {
    code: 'ERR_RESTORE_BLOCKED',
    blockers: [{ code: 'disks-missing', message: /VM 'vm2' was interrupted.*choose another name/ }],
  })
  t.equal(fs.readFileSync(disk, 'utf8'), 'now', 'the arguments of vm1 do not name the disks of vm2')
  t.strictSame(world.calls(), [])
  // The new VM does not run on these disks.
  fs.writeFileSync(record, JSON.stringify({ ...rollback, done: true, doneMs: 1, kept: [] }))
  t.ok(isAlive((await world.with().restore('vm1', 'a', options)).pid))
  t.strictSame(fs.readdirSync(staging), [])
})

t.test('fork: without writable disks it needs no copies', async (t) => {
  const world = new DiskWorld(t)
  await world.saved('a')
  const args = world.args.map((word) => word.replace(/^([34],virtio-blk,[^,]+).*/, '$1,ro'))
  const { clonedDisks } = await world.client.restore('vm1', 'a', { as: 'vm2', args, bhyve: world.script() })
  t.equal(clonedDisks, undefined)
  t.strictSame(world.calls(), [])
})

t.test('fork: rejects copies whose paths the arguments cannot have', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const bhyve = world.script()
  const client = world.with({ without: ['clonePaths'] })
  // The plan does not know the paths. A comma in the real ones would end the path for bhyve.
  const error = await rejection(
    client.restore('vm1', 'a', { as: 'a,ro', disks: 'clone', args: world.args, bhyve }),
  )
  t.match(error, { code: 'ERR_RESTORE_BLOCKED', blockers: [{ code: 'arguments-invalid' }] })
  t.equal(world.pidOf(bhyve), 0)
  for (const image of world.images) t.notOk(fs.existsSync(`${image}.a,ro`))
})

t.test('fork: a checkpoint that is damaged or gone starts nothing and leaves nothing', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const options = { ...clone, args: world.args, bhyve: world.script() }
  const none = await rejection(world.with().restore('vm1', 'none', options))
  t.match(none, { code: 'ERR_CHECKPOINT_NOT_FOUND', vm: 'vm1', checkpoint: 'none' })
  changeManifest(world.directory, 'a', { version: 99 })
  t.strictSame(codesOf(await rejection(world.with().restore('vm1', 'a', options))), ['damaged'])
  t.strictSame(fs.readdirSync(world.checkpointDirectory), ['vm1'])
  t.strictSame(world.calls(), [])
})

t.test('fork: leaks no descriptors', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const client = world.with()
  const owned = native.ownedDescriptors()
  const open = openDescriptors()
  for (const round of [1, 2]) {
    const options = { as: `fork${round}`, disks: 'clone', args: world.args } as const
    const { pid } = await client.restore('vm1', 'a', { ...options, bhyve: world.script() })
    await world.kill(pid)
    await rejection(client.restore('vm1', 'a', { ...options, bhyve: '/nonexistent' }))
    await rejection(client.restore('vm1', 'a', { ...options, bhyve: world.script() }))
  }
  t.equal(native.ownedDescriptors(), owned)
  await until(() => openDescriptors() <= open, "the threads' descriptors")
})
