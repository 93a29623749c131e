/** Suspends' stages whose managers died, made by the store's own jobs: what recovery makes of them. */
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
  change?: (inFolder: string) => void
}

/** No system gives out such a pid. */
const nobody = { pid: 2 ** 30, startedAt: '1', uid: process.geteuid!(), dialect: 'descriptor' }

/** A stage with a whole set in it, whose maker and whose bhyve are dead unless told otherwise; its id. */
function orphan(directory: string, name: string, options: OrphanOptions = {}): string {
  const { ifExists = 'replace', writer = nobody, change } = options
  const request = { directory, name, ifExists, durable: true, writerUid: process.geteuid!() }
  const intent = { vm: 'vm1', name, ifExists, poweroff: true }
  const made = jobs.createStage({ ...request, memoryBytes: undefined, intent })
  const { directory: descriptor, stage } = made.descriptors
  jobs.recordWriter({ directoryPath: directory, directory: descriptor, stage, id: made.id }, writer)
  const inFolder = path.dirname(made.requestPath)
  putSet(inFolder, 'x', { manifest: false })
  for (const ending of ['', '.kern', '.meta']) {
    fs.renameSync(path.join(inFolder, `x.ckp${ending}`), path.join(inFolder, `ckp${ending}`))
  }
  change?.(inFolder)
  for (const owned of Object.values(made.descriptors)) native.close(owned)
  return made.id
}

function cutMetadata(inFolder: string): void {
  fs.truncateSync(path.join(inFolder, 'ckp.meta'), 100)
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

t.test('a whole set is published, whoever calls', async (t) => {
  const calls: Record<string, (directory: string) => unknown> = {
    list: (directory) => jobs.listCheckpoints(directory, 'vm1'),
    has: (directory) => t.equal(jobs.hasCheckpoints(directory), true),
    suspendedState: (directory) =>
      t.match(jobs.suspendedState(directory, 'vm1', 0), { kind: 'known', checkpoint: { name: 'suspend' } }),
    prune: (directory) => jobs.pruneCheckpoints(directory, 'vm1', { keepLast: 0, maxBytes: 0 }, Date.now()),
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
      'also once it was copied',
    )
  }
})

t.test('what was saved later is never replaced by what was saved before it', async (t) => {
  const directory = store(t)
  const anHourAgo = new Date(Date.now() - 3_600_000)
  putSet(directory, 'suspend')
  orphan(directory, 'suspend', {
    change: (inFolder) => {
      for (const file of fs.readdirSync(inFolder))
        fs.utimesSync(path.join(inFolder, file), anHourAgo, anHourAgo)
    },
  })
  t.match(jobs.listCheckpoints(directory, 'vm1'), [
    { name: /^suspend-/, state: 'complete', poweredOff: true },
    { name: 'suspend', state: 'complete', poweredOff: false },
  ])
})

t.test('a commit that could not be finished does not come over a suspended VM', async (t) => {
  for (const isFolder of [true, false]) {
    const directory = store(t)
    orphan(directory, 'suspend')
    putSet(path.join(directory, '.staging', 'abc.ready'), 'suspend')
    // In its way for now, as a file with flags would be; or a disk that fails once.
    if (isFolder) fs.mkdirSync(path.join(directory, 'suspend.ckp.kern'))
    let failures = isFolder ? 0 : 1
    intercept(t, 'renameAt', (_, name) =>
      name === 'suspend.ckp.kern' && failures-- > 0 ? failure('EIO', 'renameat') : undefined,
    )
    jobs.listCheckpoints(directory, 'vm1')
    if (isFolder) {
      const refused = { code: 'ERR_SYSTEM', syscall: 'renameat' }
      t.throws(() => jobs.suspendedState(directory, 'vm1', 0), refused, 'it may be the state')
      t.throws(() => orphan(directory, 'suspend'), refused, 'nobody is asked for a name that is not free')
      t.throws(
        () => jobs.pinCheckpoint(directory, 'vm1', 'suspend', true),
        refused,
        'nor is an older one marked',
      )
    }
    if (isFolder) fs.rmdirSync(path.join(directory, 'suspend.ckp.kern'))
    const states = jobs.listCheckpoints(directory, 'vm1').map(({ state, poweredOff }) => [state, poweredOff])
    t.same(states.sort(), [
      ['complete', false],
      ['complete', true],
    ])
  }
})

t.test('a pin stays with the name', async (t) => {
  const directory = store(t)
  putSet(directory, 'suspend', { manifest: { pinned: true } })
  orphan(directory, 'suspend')
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ name: 'suspend', pinned: true, poweredOff: true }])
})

t.test('under a name of its own a state replaces nothing either', async (t) => {
  const directory = store(t)
  const age = (file: string, hours: number): void => {
    const time = new Date(Date.now() - hours * 3_600_000)
    fs.utimesSync(file, time, time)
  }
  putSet(directory, 'suspend')
  const id = orphan(directory, 'suspend', {
    change: (inFolder) => {
      for (const file of fs.readdirSync(inFolder)) age(path.join(inFolder, file), 1)
    },
  })
  // It has found a name, and gets no further.
  const goOn = intercept(t, 'renameAt', (_, __, ___, toName) =>
    String(toName).endsWith('.ready') ? failure('EIO', 'renameat') : undefined,
  )
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ name: 'suspend' }])
  goOn()
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

t.test('a suspend that has not asked yet is no state on its way', async (t) => {
  const directory = store(t)
  const intent = { vm: 'vm1', name: 'suspend', ifExists: 'replace', poweroff: true } as const
  const request = { directory, name: 'suspend', ifExists: 'replace', durable: true, intent } as const
  const made = jobs.createStage({ ...request, writerUid: process.geteuid!(), memoryBytes: undefined })
  t.same(jobs.suspendedState(directory, 'vm1', 0), { kind: 'known' })
  for (const owned of Object.values(made.descriptors)) native.close(owned)
  t.same(jobs.suspendedState(directory, 'vm1', 0), { kind: 'known' })
  t.strictSame(tree(directory), ['.staging/'])
})

t.test('another one who asks whether a stage is worked at does not work at it', async (t) => {
  const directory = store(t)
  const id = orphan(directory, 'suspend')
  const asking = native.openPath(path.join(directory, '.staging', id), fs.constants.O_DIRECTORY)
  if (isFailure(asking)) return t.fail('open')
  const modes: unknown[] = []
  const goOn = intercept(t, 'lock', (_, mode) => void modes.push(mode))
  jobs.reservedSpace([directory])
  goOn()
  t.strictSame(modes, ['shared', 'shared'], 'of `.staging`, and of the stage')
  t.equal(native.lock(asking, 'shared'), 1)
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ name: 'suspend', state: 'complete', poweredOff: true }])
  native.close(asking)
})

t.test('a bhyve whose pid is another process by now has ended', async (t) => {
  const directory = store(t)
  const writer = { ...nobody, pid: process.pid, startedAt: 'when that bhyve was started' }
  orphan(directory, 'suspend', { writer, change: cutMetadata })
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ name: /^suspend-/, state: 'damaged', poweredOff: true }])
})

t.test('what a bhyve of somebody else may plant', async (t) => {
  const directory = store(t)
  const secret = path.join(scratch(t), 'secret')
  fs.writeFileSync(secret, 'secret')
  const plants: Record<string, (inFolder: string) => void> = {
    'a link for RAM': (inFolder) => {
      fs.rmSync(path.join(inFolder, 'ckp'))
      fs.symlinkSync(secret, path.join(inFolder, 'ckp'))
    },
    'a hard link for metadata': (inFolder) => {
      fs.rmSync(path.join(inFolder, 'ckp.meta'))
      fs.linkSync(secret, path.join(inFolder, 'ckp.meta'))
    },
    'a folder for the kernel': (inFolder) => {
      fs.rmSync(path.join(inFolder, 'ckp.kern'))
      fs.mkdirSync(path.join(inFolder, 'ckp.kern'))
    },
    'a time in the far future': (inFolder) => fs.utimesSync(path.join(inFolder, 'ckp.meta'), 9e9, 9e9),
  }
  for (const [what, change] of Object.entries(plants)) {
    orphan(directory, 'suspend', { change })
    const [listed, ...others] = jobs.listCheckpoints(directory, 'vm1')
    t.same(others, [], what)
    t.match(listed, { poweredOff: true })
    // What is not a file of bhyve's own is kept beside the checkpoint and never taken for a part of it.
    for (const file of checkpointFiles(directory).filter((entry) => !entry.includes('.ckp.rest/'))) {
      const status = fs.lstatSync(path.join(directory, file))
      t.ok(status.isFile() && status.nlink === 1, `${what}: ${file}`)
    }
    t.ok(listed!.createdAt!.getTime() <= Date.now(), what)
    jobs.destroyCheckpoints(directory, false)
    t.strictSame(checkpointFiles(directory), [], `${what}: all of it goes with the checkpoint`)
    t.equal(fs.readFileSync(secret, 'utf8'), 'secret')
  }
})

t.test('a long name whose place is taken', async (t) => {
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

t.test('a bhyve that lives keeps its stage as it is', async (t) => {
  const directory = store(t)
  const status = native.processStatus(process.pid)
  if (isFailure(status)) return t.fail('this process lives')
  const writer = { ...nobody, pid: process.pid, startedAt: status.startedAt }
  const id = orphan(directory, 'suspend', { writer, change: cutMetadata })
  const stage = path.join(directory, '.staging', id)
  const before = tree(stage)
  t.same(jobs.listCheckpoints(directory, 'vm1'), [])
  t.same(jobs.suspendedState(directory, 'vm1', 0), { kind: 'known' })
  t.same(tree(stage), before)
  // It counts among those that still write.
  const request = { directory, name: 'other', ifExists: 'replace', durable: true } as const
  const other = jobs.createStage({ ...request, writerUid: process.geteuid!(), memoryBytes: undefined })
  fs.writeFileSync(path.join(stage, 'size'), String(2 ** 50))
  const handle = {
    directoryPath: directory,
    directory: other.descriptors.directory,
    stage: other.descriptors.stage,
    id: other.id,
  }
  jobs.recordReservation(handle, 4096)
  const promised = new Map(jobs.reservedSpace([directory]).map((one) => [path.basename(one.path), one.bytes]))
  t.equal(promised.size, 2)
  t.equal(promised.get(other.id), 4096)
  const written = fs.statSync(path.join(stage, 'in', 'ckp')).size
  t.equal(promised.get(id), 2 ** 50 - written)
  t.match(jobs.reserveSpace(handle, 4096, 2 ** 50), { kind: 'crowded' })
  for (const owned of Object.values(other.descriptors)) native.close(owned)
  // What another boot's process has written is whole or never will be, whoever has its pid now.
  const intent = path.join(stage, 'intent')
  const record = JSON.parse(fs.readFileSync(intent, 'utf8')) as object
  fs.writeFileSync(intent, JSON.stringify({ ...record, boot: 'another' }))
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ state: 'damaged', name: /^suspend-/ }])
})

t.test('records that cannot be read', async (t) => {
  const directory = store(t)
  const torn = orphan(directory, 'one')
  fs.truncateSync(path.join(directory, '.staging', torn, 'intent'), 5)
  const unproven = [{ code: 'durability-unproven' }]
  t.match(
    jobs.listCheckpoints(directory, 'vm1'),
    [{ name: /^suspend-/, state: 'damaged', poweredOff: true, problems: unproven }],
    'nobody knows in which boot it was made',
  )
  const id = orphan(directory, 'two', { change: cutMetadata })
  fs.truncateSync(path.join(directory, '.staging', id, 'peer'), 5)
  t.equal(jobs.listCheckpoints(directory, 'vm1').length, 1)
  t.ok(fs.existsSync(path.join(directory, '.staging', id, 'in', 'ckp')), 'who wrote it may live')
  const half = orphan(directory, 'three')
  fs.writeFileSync(path.join(directory, '.staging', half, 'three.ckp.manifest'), '{"format": "bhyve-ch')
  t.match(jobs.listCheckpoints(directory, 'vm1').at(-1), {
    name: /^three$/,
    state: 'complete',
    poweredOff: true,
  })
})

t.test('a state that cannot be published now is never taken for none', async (t) => {
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

t.test('a state that cannot be moved out of where bhyve wrote it is not overlooked', async (t) => {
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

t.test('promises that cannot be read are not none', async (t) => {
  const directory = store(t)
  fs.mkdirSync(path.join(directory, '.staging'), { recursive: true })
  const target = native as { readDirectory: typeof native.readDirectory }
  const readDirectory = native.readDirectory.bind(native)
  t.teardown(() => (target.readDirectory = readDirectory))
  const failing = (errno: number) => () => ({ errno, syscall: 'getdents' })
  target.readDirectory = failing(os.constants.errno.EIO)
  t.throws(() => jobs.reservedSpace([directory]), { code: 'ERR_SYSTEM' })
  target.readDirectory = failing(os.constants.errno.EACCES)
  t.strictSame(jobs.reservedSpace([directory]), [], 'not ours to read')
  target.readDirectory = readDirectory
  t.strictSame(jobs.reservedSpace([directory, '/nonexistent']), [])
})

/** This process, which lives. */
function alive(): { pid: number; startedAt: string } {
  const status = native.processStatus(process.pid)
  if (isFailure(status)) throw new Error('this process lives')
  return { pid: process.pid, startedAt: status.startedAt }
}

t.test('what a bhyve has still to write is promised, though its manager died', (t) => {
  const directory = store(t)
  const promise = (writer: NonNullable<OrphanOptions['writer']>): void => {
    const id = orphan(directory, 'suspend', { writer, change: cutMetadata })
    fs.writeFileSync(path.join(directory, '.staging', id, 'size'), String(memoryBytes + 4096))
  }
  promise(nobody)
  t.strictSame(jobs.reservedSpace([directory]), [])
  promise({ ...nobody, ...alive() })
  t.match(jobs.reservedSpace([directory]), [{ bytes: 4096 }])
  t.end()
})

t.test('what cannot be ours in .staging goes', (t) => {
  const directory = store(t)
  putSet(directory, 'a')
  const staging = path.join(directory, '.staging')
  fs.mkdirSync(staging)
  const strangers = {
    'restore.lock': (place: string) => fs.mkdirSync(place),
    abc: (place: string) => fs.writeFileSync(place, ''),
    def: (place: string) => fs.symlinkSync(directory, place),
  }
  for (const [name, put] of Object.entries(strangers)) {
    put(path.join(staging, name))
    t.match(jobs.listCheckpoints(directory, 'vm1'), [{ name: 'a' }])
    t.strictSame(tree(staging), [], name)
  }
  t.end()
})

t.test('in the same tick the end of a VM came last, and the state that stands is kept', async (t) => {
  const at = new Date('2026-01-01T00:00:00.000Z')
  const standing = { createdAt: at.toISOString(), memoryModifiedMs: at.getTime() }
  for (const poweredOff of [false, true]) {
    const directory = store(t)
    putSet(directory, 'suspend', { manifest: { ...standing, poweredOff } })
    orphan(directory, 'suspend', {
      change: (inFolder) => {
        for (const file of fs.readdirSync(inFolder)) fs.utimesSync(path.join(inFolder, file), at, at)
      },
    })
    const listed = jobs.listCheckpoints(directory, 'vm1')
    t.ok(listed.every((one) => one.poweredOff === true && one.state === 'complete'))
    t.equal(listed.length, poweredOff ? 2 : 1)
    t.equal(fs.readdirSync(directory).includes('suspend.ckp'), true)
  }
})

t.test('a look at a bhyve that fails is no news of its death', async (t) => {
  const directory = store(t)
  const stage = path.join(directory, '.staging', orphan(directory, 'suspend', { change: cutMetadata }))
  const before = tree(stage)
  for (const code of ['EACCES', 'EIO', 'EMFILE'] as const) {
    const show = intercept(t, 'processStatus', () => failure(code, 'open'))
    t.strictSame(jobs.listCheckpoints(directory, 'vm1'), [], code)
    t.strictSame(tree(stage), before, `${code}: it may write yet`)
    show()
  }
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ state: 'damaged', poweredOff: true }])
})

t.test('a bhyve that has served a later request: what it left goes, a complete state never', async (t) => {
  const directory = store(t)
  const server = alive()
  const writer = { ...nobody, ...server }
  const partial = orphan(directory, 'partial', { writer, change: cutMetadata })
  const whole = orphan(directory, 'whole', { writer })
  const ids = [partial, whole]
  const left = (): string[] => ids.filter((id) => fs.existsSync(path.join(directory, '.staging', id)))
  jobs.removeOrphans(directory, ids, { ...server, startedAt: 'of another process' })
  t.strictSame(left(), ids, 'another process with that pid has served nobody')
  const intent = path.join(directory, '.staging', partial, 'intent')
  const record = fs.readFileSync(intent, 'utf8')
  fs.writeFileSync(intent, JSON.stringify({ ...(JSON.parse(record) as object), boot: 'another' }))
  jobs.removeOrphans(directory, ids, server)
  t.strictSame(left(), ids, 'nor has a process of another boot')
  fs.writeFileSync(intent, record)
  jobs.removeOrphans(directory, ids, server)
  t.strictSame(left(), [whole])
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ name: 'whole', state: 'complete', poweredOff: true }])
})

t.test('what else lies where bhyve wrote is kept, too', async (t) => {
  const directory = store(t)
  orphan(directory, 'suspend', {
    change: (inFolder) => {
      cutMetadata(inFolder)
      fs.writeFileSync(path.join(inFolder, 'else'), 'of the VM')
    },
  })
  const [kept] = jobs.listCheckpoints(directory, 'vm1')
  t.match(kept, { state: 'damaged', poweredOff: true })
  t.equal(fs.readFileSync(path.join(directory, `${kept!.name}.ckp.rest/in/else`), 'utf8'), 'of the VM')
})
