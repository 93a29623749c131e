/** Restores with the stand-in for bhyve: round trips, and second restores. */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { contents, openDescriptors, rejection, until } from '../../support/index.js'
import { changeManifest } from '../../support/sets.js'
import { native, World, codesOf } from '../../support/restore_world.js'

for (const dialect of ['path', 'descriptor', 'reply', 'struct'] as const) {
  t.test(`restore: ${dialect}: a killed VM can be restored and checkpointed again`, async (t) => {
    const world = new World(t, dialect)
    await world.saved('g0')
    const first = world.digests('g0')
    for (const generation of [1, 2, 3]) {
      const bhyve = world.script()
      const restored = await world.client.restore('vm1', `g${generation - 1}`, { args: world.args, bhyve })
      t.equal(restored.pid, world.pidOf(bhyve), 'the started process serves the socket')
      t.match(await world.client.listVirtualMachines(), [{ vm: 'vm1', pid: restored.pid, state: 'running' }])
      t.equal(restored.logFile, path.join(world.directory, 'restore.log'))
      t.match(fs.readFileSync(restored.logFile, 'utf8'), /Restoring vm mem/)
      t.equal(fs.statSync(restored.logFile).mode & 0o777, 0o600)
      await world.client.createCheckpoint('vm1', { name: `g${generation}` })
      t.strictSame(world.digests(`g${generation}`), first, 'RAM, devices and CPUs are unchanged')
      await world.kill(restored.pid)
    }
    const { restoredAt } = await world.client.getCheckpoint('vm1', 'g0')
    t.ok(restoredAt instanceof Date)
    t.strictSame(world.manifest('g0').restores, [
      { at: restoredAt?.toISOString(), again: false, served: true },
    ])
    t.strictSame(await world.client.destroyAll('vm1'), ['g0', 'g1', 'g2', 'g3'])
    t.notOk(fs.existsSync(world.directory), 'the log is removed with the directory')
  })
}

for (const [dialect, generations] of [
  ['path', 5],
  ['descriptor', 20],
  ['reply', 5],
] as const) {
  t.test(
    `restore: ${dialect}: the state is unchanged after ${generations} suspends and restores`,
    async (t) => {
      const world = new World(t, dialect)
      await world.begun()
      let first: string[] | undefined
      let machine: unknown
      for (let generation = 1; generation <= generations; generation++) {
        const name = `g${generation}`
        const { devices, cpus, memoryBytes, poweredOff } = await world.client.suspend('vm1', { name })
        first ??= world.digests(name)
        machine ??= { devices, cpus, memoryBytes }
        t.strictSame(
          world.digests(name),
          first,
          `generation ${generation}: RAM, devices and CPUs are unchanged`,
        )
        t.strictSame({ devices, cpus, memoryBytes }, machine)
        t.equal(poweredOff, true)
        t.match(await world.client.verifyCheckpoint('vm1', name, { depth: 'content' }), {
          ok: true,
          depth: 'content',
        })
        t.match(await world.client.suspendedCheckpoint('vm1'), { name })
        const bhyve = world.script()
        const restored = await world.client.restore('vm1', name, { args: world.args, bhyve })
        t.equal(await world.client.suspendedCheckpoint('vm1'), undefined)
        t.match(await world.client.listVirtualMachines(), [
          { vm: 'vm1', pid: restored.pid, state: 'running' },
        ])
      }
    },
  )
}

t.test("restore: 'exited' resolves when bhyve ends", async (t) => {
  const world = new World(t)
  await world.suspended()
  const restored = await world.client.restore('vm1', 'suspend', { args: world.args, bhyve: world.script() })
  const { exited } = restored
  await world.client.suspend('vm1', { name: 'again' })
  t.strictSame(await exited, { code: 5, signal: null })
  t.strictSame(await restored.exited, { code: 5, signal: null }, 'also after the exit')
  t.strictSame(
    Object.keys(restored).sort(),
    ['logFile', 'pid'],
    "'exited' is not enumerable, so inspecting the object does not wait",
  )
})

t.test("restore: restores a suspended VM a second time only with 'again'", async (t) => {
  const world = new World(t)
  await world.suspended()
  changeManifest(world.directory, 'suspend', { ofNewerReleases: { kept: true } })
  const once = await world.client.restore('vm1', 'suspend', { args: world.args, bhyve: world.script() })
  const running = await rejection(
    world.client.restore('vm1', 'suspend', { args: world.args, bhyve: world.script(), again: true }),
  )
  t.match(running, { code: 'ERR_RESTORE_BLOCKED', vm: 'vm1', checkpoint: 'suspend' })
  t.strictSame(codesOf(running), ['already-running'])
  await world.kill(once.pid)
  const before = contents(world.directory)
  const blocked = await rejection(
    world.client.restore('vm1', 'suspend', { args: world.args, bhyve: world.script() }),
  )
  t.strictSame(codesOf(blocked), ['already-restored'])
  t.match(blocked.message, /option 'again'/)
  t.strictSame(contents(world.directory), before, 'nothing has changed')
  const again = await world.client.restore('vm1', 'suspend', {
    args: world.args,
    bhyve: world.script(),
    again: true,
  })
  t.not(again.pid, once.pid)
  t.match(world.manifest('suspend'), { poweredOff: true, ofNewerReleases: { kept: true } })
  t.match(world.manifest('suspend').restores, [
    { again: false, served: true },
    { again: true, served: true },
  ])
})

t.test('restore: rejects a disk that was changed after a suspend', async (t) => {
  const world = new World(t)
  await world.suspended()
  const disk = path.join(world.root, 'disk.img')
  fs.writeFileSync(disk, 'newer')
  fs.utimesSync(disk, 4e9, 4e9)
  const args = world.args.map((word) => word.replace('/d', disk))
  const blocked = await rejection(world.client.restore('vm1', 'suspend', { args, bhyve: world.script() }))
  t.strictSame(codesOf(blocked), ['disk-newer'])
  t.equal(world.manifest('suspend').restoredAt, undefined)
  // The checkpoint's time has whole milliseconds, but the disk's time has a fraction. Within one millisecond, the disk
  // is not newer.
  const quietMs = (await world.client.getCheckpoint('vm1', 'suspend')).createdAt.getTime()
  fs.utimesSync(disk, (quietMs + 0.6) / 1000, (quietMs + 0.6) / 1000)
  t.not(fs.statSync(disk).mtimeMs % 1, 0)
  await world.client.restore('vm1', 'suspend', { args, bhyve: world.script() })
})

t.test('restore: does not start a damaged checkpoint', async (t) => {
  const world = new World(t)
  await world.saved('a')
  fs.truncateSync(path.join(world.directory, 'a.ckp.meta'), 100)
  const before = contents(world.directory)
  const bhyve = world.script()
  const error = await rejection(world.client.restore('vm1', 'a', { args: world.args, bhyve }))
  t.match(error, { code: 'ERR_RESTORE_BLOCKED', blockers: [{ code: 'damaged' }] })
  t.strictSame(contents(world.directory), before)
  t.equal(world.pidOf(bhyve), 0)
  const none = await rejection(world.client.restore('vm1', 'none', { args: world.args, bhyve }))
  t.match(none, { code: 'ERR_CHECKPOINT_NOT_FOUND', vm: 'vm1', checkpoint: 'none' })
})

t.test('restore: leaks no descriptors', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const owned = native.ownedDescriptors()
  const open = openDescriptors()
  const rounds = async () => {
    const { pid } = await world.client.restore('vm1', 'a', {
      args: world.args,
      bhyve: world.script(),
      again: true,
    })
    await world.kill(pid)
    await rejection(
      world.client.restore('vm1', 'a', { args: world.args, bhyve: '/nonexistent', again: true }),
    )
    await rejection(world.client.restore('vm1', 'a', { args: world.args, bhyve: world.script() }))
  }
  await rounds()
  await rounds()
  t.equal(native.ownedDescriptors(), owned)
  await until(() => openDescriptors() <= open, "the threads' descriptors")
})
