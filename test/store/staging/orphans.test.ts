/** Tests of recovery for suspends' stages whose managers have died. The store's own jobs make the stages. */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import t, { type Test } from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { isFailure, loadNative } from '../../../dist/base/native.js'
import { jobs } from '../../../dist/worker/jobs.js'
import { checkpointFiles, failure, intercept, rejection, scratch, tree } from '../../support/index.js'
import { memoryBytes, putSet } from '../../support/sets.js'

const native = loadNative()

interface OrphanOptions {
  ifExists?: 'replace' | 'fail'
  writer?: { pid: number; startedAt: string; uid: number; dialect: string }
  change?: (inbox: string) => void
}

/** No system assigns such a pid. */
const nobody = { pid: 2 ** 30, startedAt: '1', uid: process.geteuid!(), dialect: 'descriptor' }

/**
 * Makes a stage with a complete checkpoint and returns its id. Its maker is dead. Its bhyve is dead, too, unless
 * `writer` lives.
 */
function orphan(directory: string, name: string, options: OrphanOptions = {}): string {
  const { ifExists = 'replace', writer = nobody, change } = options
  const request = { directory, name, ifExists, durable: true, writerUid: process.geteuid!() }
  const intent = { vm: 'vm1', name, ifExists, poweroff: true }
  const made = jobs.createStage({ ...request, memoryBytes: undefined, intent })
  const { directory: descriptor, stage } = made.descriptors
  jobs.recordWriter({ directoryPath: directory, directory: descriptor, stage, id: made.id }, writer)
  const inbox = path.dirname(made.requestPath)
  putSet(inbox, 'x', { manifest: false })
  for (const ending of ['', '.kern', '.meta']) {
    fs.renameSync(path.join(inbox, `x.ckp${ending}`), path.join(inbox, `ckp${ending}`))
  }
  change?.(inbox)
  for (const owned of Object.values(made.descriptors)) native.close(owned)
  return made.id
}

function cutMetadata(inbox: string): void {
  fs.truncateSync(path.join(inbox, 'ckp.meta'), 100)
}

function store(t: Test): string {
  const directory = path.join(scratch(t), 'vm1')
  fs.mkdirSync(directory)
  return directory
}

function smallDisk(t: Test, size: string): string {
  const mount = scratch(t)
  spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs', mount])
  t.teardown(() => spawnSync('umount', ['-l', mount]))
  return mount
}

t.test('recovery: every call publishes a complete checkpoint', async (t) => {
  const calls: Record<string, (directory: string) => unknown> = {
    list: (directory) => jobs.listCheckpoints(directory, 'vm1'),
    has: (directory) => t.equal(jobs.hasCheckpoints(directory), true),
    suspendedState: (directory) =>
      t.match(jobs.suspendedState(directory, 'vm1', 0), { kind: 'known', checkpoint: { name: 'suspend' } }),
    prune: (directory) =>
      jobs.pruneCheckpoints(directory, 'vm1', { keepLast: 0, maxBytes: 0 }, { now: Date.now() }),
    pin: (directory) => jobs.pinCheckpoint(directory, 'vm1', 'suspend', false),
  }
  for (const [what, call] of Object.entries(calls)) {
    const directory = store(t)
    orphan(directory, 'suspend')
    call(directory)
    t.same(
      checkpointFiles(directory),
      ['suspend.ckp', 'suspend.ckp.kern', 'suspend.ckp.manifest', 'suspend.ckp.meta'],
      what,
    )
    t.match(jobs.listCheckpoints(directory, 'vm1'), [{ state: 'complete', poweredOff: true, pinned: false }])
    const { createdAt } = jobs.getCheckpoint(directory, 'vm1', 'suspend')
    const later = new Date(createdAt.getTime() + 60_000)
    fs.utimesSync(path.join(directory, 'suspend.ckp'), later, later)
    t.strictSame(
      jobs.getCheckpoint(directory, 'vm1', 'suspend').createdAt,
      createdAt,
      'the time is kept even if the RAM file was copied',
    )
  }
})

t.test('recovery: a state never replaces a checkpoint that was saved later', async (t) => {
  const directory = store(t)
  const anHourAgo = new Date(Date.now() - 3_600_000)
  putSet(directory, 'suspend')
  orphan(directory, 'suspend', {
    change: (inbox) => {
      for (const file of fs.readdirSync(inbox)) fs.utimesSync(path.join(inbox, file), anHourAgo, anHourAgo)
    },
  })
  t.match(jobs.listCheckpoints(directory, 'vm1'), [
    { name: /^suspend-/, state: 'complete', poweredOff: true },
    { name: 'suspend', state: 'complete', poweredOff: false },
  ])
})

t.test('recovery: an unfinished commit does not replace a suspended state', async (t) => {
  for (const isBlocked of [true, false]) {
    const directory = store(t)
    orphan(directory, 'suspend')
    putSet(path.join(directory, '.staging', 'abc.ready'), 'suspend')
    // Either something blocks the file for now, as file flags would, or the disk fails once.
    if (isBlocked) fs.mkdirSync(path.join(directory, 'suspend.ckp.kern'))
    let failures = isBlocked ? 0 : 1
    intercept(t, 'renameAt', (_, name) =>
      name === 'suspend.ckp.kern' && failures-- > 0 ? failure('EIO', 'renameat') : undefined,
    )
    jobs.listCheckpoints(directory, 'vm1')
    if (isBlocked) {
      const refused = { code: 'ERR_SYSTEM', syscall: 'renameat' }
      t.throws(
        () => jobs.suspendedState(directory, 'vm1', 0),
        refused,
        'the unfinished commit may be the state',
      )
      t.throws(() => orphan(directory, 'suspend'), refused, 'no request is sent for a name that is not free')
      t.throws(
        () => jobs.pinCheckpoint(directory, 'vm1', 'suspend', true),
        refused,
        'an older checkpoint is not pinned either',
      )
    }
    if (isBlocked) fs.rmdirSync(path.join(directory, 'suspend.ckp.kern'))
    const states = jobs.listCheckpoints(directory, 'vm1').map(({ state, poweredOff }) => [state, poweredOff])
    t.same(states.sort(), [
      ['complete', false],
      ['complete', true],
    ])
  }
})

t.test('recovery: a state that replaces a pinned checkpoint is pinned', async (t) => {
  const directory = store(t)
  putSet(directory, 'suspend', { manifest: { pinned: true } })
  orphan(directory, 'suspend')
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ name: 'suspend', pinned: true, poweredOff: true }])
})

t.test('recovery: a state under a fresh name replaces no checkpoint', async (t) => {
  const directory = store(t)
  const age = (file: string, hours: number): void => {
    const time = new Date(Date.now() - hours * 3_600_000)
    fs.utimesSync(file, time, time)
  }
  putSet(directory, 'suspend')
  const id = orphan(directory, 'suspend', {
    change: (inbox) => {
      for (const file of fs.readdirSync(inbox)) age(path.join(inbox, file), 1)
    },
  })
  // Recovery has chosen a fresh name and is then interrupted.
  const restore = intercept(t, 'renameAt', (_, __, ___, toName) =>
    String(toName).endsWith('.ready') ? failure('EIO', 'renameat') : undefined,
  )
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ name: 'suspend' }])
  restore()
  const record = fs.readFileSync(path.join(directory, '.staging', id, 'intent'), 'utf8')
  const { name } = JSON.parse(record) as { name: string }
  t.match(name, /^suspend-/)
  putSet(directory, name, { manifest: false })
  age(path.join(directory, `${name}.ckp`), 2)
  const { ino } = fs.statSync(path.join(directory, `${name}.ckp`))
  const states = jobs.listCheckpoints(directory, 'vm1').map(({ state, poweredOff }) => [state, poweredOff])
  t.strictSame(states, [
    ['complete', false],
    ['complete', true],
    ['complete', false],
  ])
  t.equal(fs.statSync(path.join(directory, `${name}.ckp`)).ino, ino)
})

t.test('suspendedState: a suspend that has not sent its request does not count', async (t) => {
  const directory = store(t)
  const intent = { vm: 'vm1', name: 'suspend', ifExists: 'replace', poweroff: true } as const
  const request = { directory, name: 'suspend', ifExists: 'replace', durable: true, intent } as const
  const made = jobs.createStage({ ...request, writerUid: process.geteuid!(), memoryBytes: undefined })
  t.same(jobs.suspendedState(directory, 'vm1', 0), { kind: 'known' })
  for (const owned of Object.values(made.descriptors)) native.close(owned)
  t.same(jobs.suspendedState(directory, 'vm1', 0), { kind: 'known' })
  t.strictSame(tree(directory), ['.staging/'])
})

t.test('the check whether a stage is live does not make the stage live', async (t) => {
  const directory = store(t)
  const id = orphan(directory, 'suspend')
  const checking = native.openPath(path.join(directory, '.staging', id), fs.constants.O_DIRECTORY)
  if (isFailure(checking)) return t.fail('open')
  const modes: unknown[] = []
  const restore = intercept(t, 'lock', (_, mode) => void modes.push(mode))
  jobs.reservedSpace([directory])
  restore()
  t.strictSame(modes, ['shared', 'shared'], 'on `.staging`, and on the stage')
  t.equal(native.lock(checking, 'shared'), 1)
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ name: 'suspend', state: 'complete', poweredOff: true }])
  native.close(checking)
})

t.test('recovery: a bhyve whose pid belongs to another process has ended', async (t) => {
  const directory = store(t)
  const writer = { ...nobody, pid: process.pid, startedAt: 'when that bhyve was started' }
  orphan(directory, 'suspend', { writer, change: cutMetadata })
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ name: /^suspend-/, state: 'damaged', poweredOff: true }])
})

t.test('recovery: nothing that a bhyve of another user plants becomes a checkpoint file', async (t) => {
  const directory = store(t)
  const secret = path.join(scratch(t), 'secret')
  fs.writeFileSync(secret, 'secret')
  const plants: Record<string, (inbox: string) => void> = {
    'a link for RAM': (inbox) => {
      fs.rmSync(path.join(inbox, 'ckp'))
      fs.symlinkSync(secret, path.join(inbox, 'ckp'))
    },
    'a hard link for metadata': (inbox) => {
      fs.rmSync(path.join(inbox, 'ckp.meta'))
      fs.linkSync(secret, path.join(inbox, 'ckp.meta'))
    },
    'a directory for the kernel': (inbox) => {
      fs.rmSync(path.join(inbox, 'ckp.kern'))
      fs.mkdirSync(path.join(inbox, 'ckp.kern'))
    },
    'a time in the far future': (inbox) => fs.utimesSync(path.join(inbox, 'ckp.meta'), 9e9, 9e9),
  }
  for (const [what, change] of Object.entries(plants)) {
    orphan(directory, 'suspend', { change })
    const [listed, ...others] = jobs.listCheckpoints(directory, 'vm1')
    t.same(others, [], what)
    t.match(listed, { poweredOff: true })
    // Anything but a regular file with one link is kept beside the checkpoint and is never a part of it.
    for (const file of checkpointFiles(directory).filter((entry) => !entry.includes('.ckp.rest/'))) {
      const status = fs.lstatSync(path.join(directory, file))
      t.ok(status.isFile() && status.nlink === 1, `${what}: ${file}`)
    }
    t.ok(listed!.createdAt!.getTime() <= Date.now(), what)
    jobs.destroyCheckpoints(directory, false)
    t.strictSame(checkpointFiles(directory), [], `${what}: destroyAll removes everything`)
    t.equal(fs.readFileSync(secret, 'utf8'), 'secret')
  }
})

t.test('recovery: shortens a long name that is taken', async (t) => {
  const directory = store(t)
  const name = `${'ü'.repeat(90)}x`
  orphan(directory, name, { ifExists: 'fail' })
  putSet(directory, name)
  const listed = jobs.listCheckpoints(directory, 'vm1')
  t.same(
    listed.map(({ state }) => state),
    ['complete', 'complete'],
  )
  for (const { path: file } of listed) t.ok(Buffer.byteLength(file) <= 250, file)
})

t.test('recovery: leaves the stage of a live bhyve unchanged, and counts its reservation', async (t) => {
  const directory = store(t)
  const status = native.processStatus(process.pid)
  if (isFailure(status)) return t.fail('the status of this process cannot be read')
  const writer = { ...nobody, pid: process.pid, startedAt: status.startedAt }
  const id = orphan(directory, 'suspend', { writer, change: cutMetadata })
  const stage = path.join(directory, '.staging', id)
  const before = tree(stage)
  t.same(jobs.listCheckpoints(directory, 'vm1'), [])
  t.same(jobs.suspendedState(directory, 'vm1', 0), { kind: 'known' })
  t.same(tree(stage), before)
  // The stage has a reservation, because its bhyve still writes.
  const request = { directory, name: 'other', ifExists: 'replace', durable: true } as const
  const other = jobs.createStage({ ...request, writerUid: process.geteuid!(), memoryBytes: undefined })
  fs.writeFileSync(path.join(stage, 'size'), String(2 ** 50))
  const handle = {
    directoryPath: directory,
    directory: other.descriptors.directory,
    stage: other.descriptors.stage,
    id: other.id,
  }
  const device = jobs.recordReservation(handle, 4096)
  const reserved = new Map(jobs.reservedSpace([directory]).map((one) => [path.basename(one.path), one.bytes]))
  t.equal(reserved.size, 2)
  t.equal(reserved.get(other.id), 4096)
  const written = fs.statSync(path.join(stage, 'in', 'ckp')).size
  t.equal(reserved.get(id), 2 ** 50 - written)
  t.match(jobs.reserveSpace([{ handle, bytes: 4096, device }], []), [{ kind: 'crowded' }])
  for (const owned of Object.values(other.descriptors)) native.close(owned)
  // A process of another boot has ended, even if its pid belongs to a live process now.
  const intent = path.join(stage, 'intent')
  const record = JSON.parse(fs.readFileSync(intent, 'utf8')) as object
  fs.writeFileSync(intent, JSON.stringify({ ...record, boot: 'another' }))
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ state: 'damaged', name: /^suspend-/ }])
})

t.test('recovery: keeps the stage of a suspend whose records cannot be read', async (t) => {
  const directory = store(t)
  const torn = orphan(directory, 'one')
  fs.truncateSync(path.join(directory, '.staging', torn, 'intent'), 5)
  const unproven = [{ code: 'durability-unproven' }]
  t.match(
    jobs.listCheckpoints(directory, 'vm1'),
    [{ name: /^suspend-/, state: 'damaged', poweredOff: true, problems: unproven }],
    'without the intent record, the boot is unknown',
  )
  const id = orphan(directory, 'two', { change: cutMetadata })
  fs.truncateSync(path.join(directory, '.staging', id, 'peer'), 5)
  t.equal(jobs.listCheckpoints(directory, 'vm1').length, 1)
  t.ok(
    fs.existsSync(path.join(directory, '.staging', id, 'in', 'ckp')),
    'without the peer record, its bhyve may live',
  )
  const half = orphan(directory, 'three')
  fs.writeFileSync(path.join(directory, '.staging', half, 'three.ckp.manifest'), '{"format": "bhyve-ch')
  t.match(jobs.listCheckpoints(directory, 'vm1').at(-1), {
    name: /^three$/,
    state: 'complete',
    poweredOff: true,
  })
})

t.test('suspendedCheckpoint: rejects while the disk is too full to publish the state', async (t) => {
  const mount = smallDisk(t, '8m')
  const directory = path.join(mount, 'vm1')
  fs.mkdirSync(directory)
  const id = orphan(directory, 'suspend')
  fs.rmSync(path.join(directory, '.staging', id, 'reserve'))
  const filler = path.join(mount, 'filler')
  const descriptor = fs.openSync(filler, 'w')
  t.throws(() => {
    for (;;) fs.writeSync(descriptor, Buffer.alloc(4096))
  })
  fs.closeSync(descriptor)
  const client = createClient({ checkpointDirectory: mount })
  for (let attempt = 0; attempt < 3; attempt++) {
    t.match(await rejection(client.suspendedCheckpoint('vm1')), { code: 'ERR_NO_SPACE', vm: 'vm1' })
  }
  t.match(await client.listStored(), ['vm1'])
  fs.rmSync(filler)
  t.match(await client.suspendedCheckpoint('vm1'), { name: 'suspend' })
  const since = new Date(Date.now() + 1000)
  t.equal(await client.suspendedCheckpoint('vm1', { since }), undefined)
  const bad = { since: 5 as never }
  t.match(await rejection(client.suspendedCheckpoint('vm1', bad)), { code: 'ERR_INVALID_OPTION' })
})

t.test('suspendedState: throws if the state cannot be moved out of the inbox', async (t) => {
  const directory = store(t)
  orphan(directory, 'suspend')
  const target = native as { renameAt: typeof native.renameAt }
  const renameAt = native.renameAt.bind(native)
  t.teardown(() => (target.renameAt = renameAt))
  target.renameAt = (from, name, to, toName) =>
    name === 'ckp' ? { errno: os.constants.errno.EIO, syscall: 'renameat' } : renameAt(from, name, to, toName)
  t.throws(() => jobs.suspendedState(directory, 'vm1', 0), { code: 'ERR_SYSTEM', message: /renameat.*EIO/ })
  target.renameAt = renameAt
  t.match(jobs.suspendedState(directory, 'vm1', 0), { kind: 'known', checkpoint: { name: 'suspend' } })
})

t.test('reservedSpace: throws if reservations cannot be read', async (t) => {
  const directory = store(t)
  fs.mkdirSync(path.join(directory, '.staging'), { recursive: true })
  const target = native as { readDirectory: typeof native.readDirectory }
  const readDirectory = native.readDirectory.bind(native)
  t.teardown(() => (target.readDirectory = readDirectory))
  const failing = (errno: number) => () => ({ errno, syscall: 'getdents' })
  target.readDirectory = failing(os.constants.errno.EIO)
  t.throws(() => jobs.reservedSpace([directory]), { code: 'ERR_SYSTEM' })
  target.readDirectory = failing(os.constants.errno.EACCES)
  t.strictSame(jobs.reservedSpace([directory]), [], 'a directory of another user has no reservations')
  target.readDirectory = readDirectory
  t.strictSame(jobs.reservedSpace([directory, '/nonexistent']), [])
})

/** The pid and start time of this process, which is alive. */
function alive(): { pid: number; startedAt: string } {
  const status = native.processStatus(process.pid)
  if (isFailure(status)) throw new Error('the status of this process cannot be read')
  return { pid: process.pid, startedAt: status.startedAt }
}

t.test('reservedSpace: counts a live bhyve whose manager has died', (t) => {
  const directory = store(t)
  const reserve = (writer: NonNullable<OrphanOptions['writer']>): void => {
    const id = orphan(directory, 'suspend', { writer, change: cutMetadata })
    fs.writeFileSync(path.join(directory, '.staging', id, 'size'), String(memoryBytes + 4096))
  }
  reserve(nobody)
  t.strictSame(jobs.reservedSpace([directory]), [])
  reserve({ ...nobody, ...alive() })
  t.match(jobs.reservedSpace([directory]), [{ bytes: 4096 }])
  t.end()
})

t.test('recovery: removes entries of .staging that this library cannot have made', (t) => {
  const directory = store(t)
  putSet(directory, 'a')
  const staging = path.join(directory, '.staging')
  fs.mkdirSync(staging)
  const strangers = {
    'restore.lock': (file: string) => fs.mkdirSync(file),
    abc: (file: string) => fs.writeFileSync(file, ''),
    def: (file: string) => fs.symlinkSync(directory, file),
  }
  for (const [name, put] of Object.entries(strangers)) {
    put(path.join(staging, name))
    t.match(jobs.listCheckpoints(directory, 'vm1'), [{ name: 'a' }])
    t.strictSame(tree(staging), [], name)
  }
  t.end()
})

t.test('recovery: with equal times, a state replaces a live checkpoint, but not another state', async (t) => {
  const at = new Date('2026-01-01T00:00:00.000Z')
  const existing = { createdAt: at.toISOString(), memoryModifiedMs: at.getTime() }
  for (const poweredOff of [false, true]) {
    const directory = store(t)
    putSet(directory, 'suspend', { manifest: { ...existing, poweredOff } })
    orphan(directory, 'suspend', {
      change: (inbox) => {
        for (const file of fs.readdirSync(inbox)) fs.utimesSync(path.join(inbox, file), at, at)
      },
    })
    const listed = jobs.listCheckpoints(directory, 'vm1')
    t.ok(listed.every((one) => one.poweredOff === true && one.state === 'complete'))
    t.equal(listed.length, poweredOff ? 2 : 1)
    t.equal(fs.readdirSync(directory).includes('suspend.ckp'), true)
  }
})

t.test('recovery: a failed status call does not count as the end of bhyve', async (t) => {
  const directory = store(t)
  const stage = path.join(directory, '.staging', orphan(directory, 'suspend', { change: cutMetadata }))
  const before = tree(stage)
  for (const code of ['EACCES', 'EIO', 'EMFILE'] as const) {
    const showAgain = intercept(t, 'processStatus', () => failure(code, 'open'))
    t.strictSame(jobs.listCheckpoints(directory, 'vm1'), [], code)
    t.strictSame(tree(stage), before, `${code}: bhyve may still write`)
    showAgain()
  }
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ state: 'damaged', poweredOff: true }])
})

t.test('removeOrphans: removes incomplete stages of a bhyve that has finished a later request', async (t) => {
  const directory = store(t)
  const server = alive()
  const writer = { ...nobody, ...server }
  const partial = orphan(directory, 'partial', { writer, change: cutMetadata })
  const complete = orphan(directory, 'complete', { writer })
  const ids = [partial, complete]
  const left = (): string[] => ids.filter((id) => fs.existsSync(path.join(directory, '.staging', id)))
  jobs.removeOrphans(directory, ids, { ...server, startedAt: 'of another process' })
  t.strictSame(left(), ids, 'another process with that pid proves nothing')
  const intent = path.join(directory, '.staging', partial, 'intent')
  const record = fs.readFileSync(intent, 'utf8')
  fs.writeFileSync(intent, JSON.stringify({ ...(JSON.parse(record) as object), boot: 'another' }))
  jobs.removeOrphans(directory, ids, server)
  t.strictSame(left(), ids, 'a process of another boot proves nothing')
  fs.writeFileSync(intent, record)
  jobs.removeOrphans(directory, ids, server)
  t.strictSame(left(), [complete], 'a complete state is never removed')
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ name: 'complete', state: 'complete', poweredOff: true }])
})

t.test('recovery: keeps other files in the inbox beside the damaged checkpoint', async (t) => {
  const directory = store(t)
  orphan(directory, 'suspend', {
    change: (inbox) => {
      cutMetadata(inbox)
      fs.writeFileSync(path.join(inbox, 'else'), 'of the VM')
    },
  })
  const [kept] = jobs.listCheckpoints(directory, 'vm1')
  t.match(kept, { state: 'damaged', poweredOff: true })
  t.equal(fs.readFileSync(path.join(directory, `${kept!.name}.ckp.rest/in/else`), 'utf8'), 'of the VM')
})
