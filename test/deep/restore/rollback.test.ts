/** Restores with `disks: 'rollback'`: the record, the order of the steps, cancels and failures. */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { AbortError, type DiskProvider } from 'bhyve-checkpoint'
import { rejection, tree, until } from '../../support/index.js'
import { codesOf, isAlive } from '../../support/restore_world.js'
import { copyingDisks, DiskWorld } from '../../support/disk_world.js'

t.test('rollback: puts all disks back before bhyve starts, and keeps their former state', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const bhyve = world.script()
  const recorded: unknown[] = []
  const onCall = (): void => {
    t.equal(world.pidOf(bhyve), 0, 'bhyve was not started yet')
    recorded.push(JSON.parse(fs.readFileSync(world.rollbackRecord, 'utf8')))
  }
  const client = world.with({ onCall })
  const { pid, keptDisks, clonedDisks } = await client.restore('vm1', 'a', {
    args: world.args,
    bhyve,
    disks: 'rollback',
  })
  t.ok(isAlive(pid))
  t.strictSame(world.contents(), ['then', 'then'])
  const calls = world.calls()
  t.strictSame(
    calls.map(({ call, paths }) => [call, paths]),
    world.images.map((image) => ['rollback', [image]]),
  )
  const [{ id = '' } = {}] = calls
  t.match(id, /^[0-9a-f-]{36}$/)
  t.equal(calls[1]?.id, id, 'one id for all disks')
  const owner = { vm: 'vm1', id: world.manifest('a').id, directory: world.directory }
  for (const call of calls) t.strictSame(call.owner, owner)
  t.match(recorded, [
    { id, vm: 'vm1', checkpoint: 'a', owner },
    { id, vm: 'vm1', checkpoint: 'a', owner },
  ])
  t.strictSame(
    keptDisks,
    world.images.map((image) => `${image}.${id}`),
  )
  t.equal(clonedDisks, undefined)
  for (const kept of keptDisks ?? []) t.equal(fs.readFileSync(kept, 'utf8'), 'now')
  t.strictSame(fs.readdirSync(path.join(world.directory, '.staging')), [], 'the record is removed')
  t.type(world.manifest('a').restoredAt, 'string')
})

t.test('rollback: a checkpoint can be restored any number of times without `again`', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const ids = new Set<string | undefined>()
  for (const round of [1, 2, 3]) {
    const options = { args: world.args, bhyve: world.script(), disks: 'rollback' } as const
    const { pid } = await world.with().restore('vm1', 'a', options)
    t.strictSame(world.contents(), ['then', 'then'])
    ids.add(world.calls().at(-1)?.id)
    t.equal(ids.size, round, 'each rollback has an id of its own')
    await world.kill(pid)
    for (const image of world.images) fs.writeFileSync(image, `after ${round}`)
  }
})

t.test("rollback: 'keep' starts the VM on the disks as they are", async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const restored = await world.client.restore('vm1', 'a', {
    args: world.args,
    bhyve: world.script(),
    disks: 'keep',
  })
  t.strictSame(world.contents(), ['now', 'now'])
  t.strictSame(Object.keys(restored).sort(), ['logFile', 'pid'])
})

t.test('rollback: changes nothing if the plan has a blocker', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const options = { args: world.args, bhyve: '/nonexistent', disks: 'rollback' } as const
  t.match(await rejection(world.with().restore('vm1', 'a', options)), { code: 'ERR_RESTORE_BLOCKED' })
  t.strictSame(world.calls(), [])
  t.notOk(fs.existsSync(world.rollbackRecord))
})

t.test(
  'rollback: a failure in the middle leaves the record, and the next restore finishes it first',
  async (t) => {
    const world = new DiskWorld(t)
    await world.savedWithDisks()
    const bhyve = world.script()
    let calls = 0
    const onCall = (): void => {
      if (++calls === 2) throw new Error('the disk is busy')
    }
    const options = { args: world.args, bhyve, disks: 'rollback' } as const
    const failed = await rejection(world.with({ onCall }).restore('vm1', 'a', options))
    t.match(failed, { code: 'ERR_RESTORE_FAILED', vm: 'vm1', checkpoint: 'a', vmState: 'off' })
    t.match(
      failed.message,
      /the disk is busy\. Put back: '.*a\.img'\. Not or only partly put back: '.*b\.img'\./,
    )
    t.match(failed.message, /the next restore of this VM finishes the rollback/)
    t.match(failed.message, `and then remove the file '${world.rollbackRecord}'`)
    t.equal(world.pidOf(bhyve), 0)
    t.strictSame(world.contents(), ['then', 'now'])
    const [{ id } = {}] = world.calls()

    t.match(await world.with().planRestore('vm1', 'a', options), {
      blockers: [],
      warnings: [{ code: 'rollback-unfinished', message: /to checkpoint 'a' was interrupted/ }],
    })
    t.strictSame(world.contents(), ['then', 'now'], 'a plan changes nothing')
    const without = await world.client.planRestore('vm1', 'a', { ...options, disks: 'keep' })
    t.match(without, { blockers: [{ code: 'disks-missing', message: /cannot be finished.*kind 'copy'/ }] })
    const unable = await rejection(world.client.restore('vm1', 'a', { ...options, disks: 'keep' }))
    t.match(unable, { code: 'ERR_RESTORE_FAILED', vmState: 'off', path: world.rollbackRecord })
    t.equal(world.pidOf(bhyve), 0)

    t.match(await world.client.listCheckpoints('vm1'), [{ name: 'a', state: 'complete' }])
    t.ok(fs.existsSync(world.rollbackRecord), 'other calls keep the record')
    const { keptDisks } = await world.with().restore('vm1', 'a', { ...options, disks: 'keep' })
    t.strictSame(
      keptDisks,
      world.images.map((image) => `${image}.${id ?? ''}`),
    )
    t.strictSame(world.contents(), ['then', 'then'])
    t.ok(
      world.calls().every((call) => call.id === id),
      'the same id',
    )
    t.notOk(fs.existsSync(world.rollbackRecord))
  },
)

t.test(
  'rollback: an unfinished one is finished although the requested checkpoint is another one',
  async (t) => {
    const world = new DiskWorld(t)
    await world.saved('a', 'other')
    world.addSnapshots('a')
    const options = { args: world.args, bhyve: world.script(), disks: 'rollback' } as const
    const failing = world.with({ fail: { rollback: 'no' } })
    await rejection(failing.restore('vm1', 'a', options))
    const missing = await rejection(world.with().restore('vm1', 'none', options))
    t.match(missing, {
      code: 'ERR_CHECKPOINT_NOT_FOUND',
      message: /The disks were put back.*kept as '.*a\.img\./,
    })
    t.strictSame(world.contents(), ['then', 'then'])
    const { keptDisks } = await world.with().restore('vm1', 'other', { ...options, disks: 'keep' })
    t.equal(keptDisks, undefined, 'an earlier call has reported them')
    t.equal(new Set(world.calls().map(({ id }) => id)).size, 1)
    t.notOk(fs.existsSync(world.rollbackRecord))
  },
)

t.test('rollback: does not touch the disks of a VM that was started meanwhile', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const options = { args: world.args, bhyve: world.script(), disks: 'rollback' } as const
  await rejection(world.with({ fail: { rollback: 'no' } }).restore('vm1', 'a', options))
  await world.begun()
  const before = world.calls().length
  const error = await rejection(world.with().restore('vm1', 'a', options))
  t.strictSame(codesOf(error), ['already-running'])
  t.equal(world.calls().length, before)
  t.strictSame(world.contents(), ['now', 'now'])
  t.ok(fs.existsSync(world.rollbackRecord))
})

t.test(
  'rollback: a cancel before it begins prevents it, a later one lets it end and prevents the start',
  async (t) => {
    const world = new DiskWorld(t)
    await world.savedWithDisks()
    const bhyve = world.script()
    const options = { args: world.args, bhyve, disks: 'rollback' } as const
    const early = AbortSignal.abort()
    const prevented = world.with().restore('vm1', 'a', { ...options, signal: early })
    t.ok((await prevented.catch((reason: unknown) => reason)) instanceof AbortError)
    t.strictSame(world.calls(), [])
    const controller = new AbortController()
    const client = world.with({ onCall: () => controller.abort() })
    const call = client.restore('vm1', 'a', { ...options, signal: controller.signal })
    const error = await call.catch((reason: unknown) => reason)
    t.ok(error instanceof AbortError)
    t.match(error, {
      begun: true,
      rollingBack: true,
      message: /the disks are put back to the checkpoint, and bhyve is not started/,
    })
    await client.idle()
    t.strictSame(world.contents(), ['then', 'then'])
    t.equal(world.pidOf(bhyve), 0)
    t.match(JSON.parse(fs.readFileSync(world.rollbackRecord, 'utf8')), { done: true })
    t.equal(world.manifest('a').restoredAt, undefined)
  },
)

t.test('rollback: an error after it reports where the former disks are', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const options = { args: world.args, bhyve: world.script({ instead: 'exit 1' }), disks: 'rollback' } as const
  const error = await rejection(world.with().restore('vm1', 'a', options))
  t.match(error, {
    code: 'ERR_RESTORE_FAILED',
    message: /status 1[^]*The disks were put back[^]*kept as '.*a\.img\./,
  })
  t.equal(world.manifest('a').restoredAt, undefined, 'the restore record is revoked')
})

t.test('rollback: nothing is put back if the checkpoint is replaced after the plan', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const provider = copyingDisks(world.log)
  const replacing: DiskProvider = {
    ...provider,
    shared: () => {
      fs.copyFileSync(path.join(world.directory, 'a.ckp'), path.join(world.directory, 'new'))
      fs.renameSync(path.join(world.directory, 'new'), path.join(world.directory, 'a.ckp'))
      return Promise.resolve([])
    },
  }
  const client = world.newClient({ diskProviders: [replacing] })
  const options = { args: world.args, bhyve: world.script(), disks: 'rollback' } as const
  t.match(await rejection(client.restore('vm1', 'a', options)), { code: 'ERR_CHECKPOINT_BUSY' })
  t.strictSame(world.calls(), [])
  t.notOk(fs.existsSync(world.rollbackRecord))
})

t.test('rollback: a record that cannot be used prevents every start', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const options = { args: world.args, bhyve: world.script(), disks: 'rollback' } as const
  await rejection(world.with({ fail: { rollback: 'no' } }).restore('vm1', 'a', options))
  const good = JSON.parse(fs.readFileSync(world.rollbackRecord, 'utf8')) as Record<string, unknown>
  const owner = good.owner as object
  const outside = path.join(world.root, 'outside')
  fs.writeFileSync(outside, JSON.stringify(good))
  const write = (value: unknown) => (): void =>
    fs.writeFileSync(world.rollbackRecord, typeof value === 'string' ? value : JSON.stringify(value))
  const bad: [string, RegExp, () => void][] = [
    ['no JSON', /it is damaged/, write('{')],
    ['empty', /it is damaged/, write('')],
    ['deeply nested JSON', /it is damaged/, write('['.repeat(100_000))],
    ['a path as id', /it is damaged/, write({ ...good, id: '../../x' })],
    ['no disks', /it is damaged/, write({ ...good, disks: [] })],
    ['odd disks', /it is damaged/, write({ ...good, disks: [{ kind: 'copy', disks: [{ path: 1 }] }] })],
    ['another VM', /it is of VM 'vm2'/, write({ ...good, vm: 'vm2' })],
    ['an owner of another VM', /it is of VM/, write({ ...good, owner: { ...owner, vm: 'vm2' } })],
    [
      'a copied directory',
      /it is of the directory '\/x'/,
      write({ ...good, owner: { ...owner, directory: '/x' } }),
    ],
    ['too large', /it is too large/, () => fs.truncateSync(world.rollbackRecord, 5 * 1024 * 1024)],
    ['a symbolic link', /not a regular file/, () => fs.symlinkSync(outside, world.rollbackRecord)],
    ['two links', /not a regular file/, () => fs.linkSync(outside, world.rollbackRecord)],
    ['a directory', /not a regular file/, () => fs.mkdirSync(world.rollbackRecord)],
  ]
  const before = world.calls().length
  for (const [what, reason, make] of bad) {
    fs.rmSync(world.rollbackRecord, { force: true, recursive: true })
    if (what === 'too large') write('')()
    make()
    for (const disks of ['rollback', 'keep'] as const) {
      const error = await rejection(world.with().restore('vm1', 'a', { ...options, disks }))
      t.match(error, { code: 'ERR_RESTORE_FAILED', vmState: 'off', path: world.rollbackRecord }, what)
      t.match(error.message, reason, what)
    }
    t.match(await world.with().planRestore('vm1', 'a', options), {
      blockers: [{ code: 'disks-missing', message: reason }],
      warnings: [{ code: 'rollback-unfinished' }],
    })
    t.match(await world.client.listCheckpoints('vm1'), [{ name: 'a', state: 'complete' }])
  }
  t.equal(world.calls().length, before, 'no provider was called')
  t.equal(world.pidOf(options.bhyve), 0)
  t.strictSame(await world.with().destroyAll('vm1'), ['a'])
  t.ok(fs.existsSync(world.rollbackRecord), 'the directory stays while the record exists')
  t.strictSame(
    tree(world.directory).filter((entry) => !entry.startsWith('.staging')),
    [],
  )
  fs.rmSync(world.rollbackRecord, { recursive: true })
  await world.client.destroyAll('vm1')
  await until(() => !fs.existsSync(world.directory), 'the removal of the directory')
})

t.test('rollback: recovery removes a record that was not completed', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  fs.mkdirSync(path.join(world.directory, '.staging'), { recursive: true })
  const fresh = path.join(world.directory, '.staging/disks.rollback.new')
  fs.writeFileSync(fresh, '{')
  t.match(await world.client.listCheckpoints('vm1'), [{ name: 'a' }])
  t.notOk(fs.existsSync(fresh))
})

t.test('rollback: the checkpoint of an interrupted rollback cannot be removed', async (t) => {
  const world = new DiskWorld(t)
  await world.savedWithDisks()
  const options = { args: world.args, bhyve: world.script(), disks: 'rollback' } as const
  await rejection(world.with({ fail: { rollback: 'no' } }).restore('vm1', 'a', options))
  const client = world.with()
  const error = await rejection(client.destroyCheckpoint('vm1', 'a'))
  t.match(error, { code: 'ERR_CHECKPOINT_BUSY', message: /half put back to checkpoint 'a'/ })
  t.strictSame(await client.destroyAll('vm1'), [])
  t.match(await client.getCheckpoint('vm1', 'a'), { name: 'a' })
  await client.restore('vm1', 'a', options)
  await client.destroyCheckpoint('vm1', 'a')
  t.strictSame(await client.listCheckpoints('vm1'), [])
})
