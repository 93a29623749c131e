/** Tests of files that cannot be read, removed or moved, or that change meanwhile. They must not block other calls. */
import { execFileSync, type ExecFileSyncOptionsWithStringEncoding } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { createClientIn } from '../../../dist/client/client.js'
import { hostEnvironment } from '../../../dist/client/environment.js'
// @ts-expect-error: a plain module, shared with programs that are not TypeScript
import { writeSet as writeAnySet } from '../../crash/sets.mjs'
import {
  checkpointFiles,
  childEnvironment,
  failure,
  inlinePool,
  intercept,
  readOneByOne,
  pathOfFolder,
  rejection,
  scratch,
  serveByHand,
} from '../../support/index.js'
import { forAnyUser } from '../../support/any_user.js'
import { start } from '../../support/small_vm.js'

const writeSet = writeAnySet as (base: string, tag: number) => void
const isRoot = process.geteuid?.() === 0
const needsRoot = { skip: isRoot ? false : 'needs root' }

const odd = Buffer.from([0x6f, 0xff, 0xfe, 0x64])

function plantOdd(directory: string): void {
  fs.writeFileSync(Buffer.concat([Buffer.from(`${directory}/`), odd]), '')
  fs.mkdirSync(Buffer.concat([Buffer.from(`${directory}/`), odd, Buffer.from('-directory')]))
  fs.writeFileSync(Buffer.concat([Buffer.from(`${directory}/`), odd, Buffer.from('-directory/'), odd]), '')
}

t.test('create: removes files whose names are not valid UTF-8', async (t) => {
  const directory = fs.realpathSync(scratch(t))
  const checkpointDirectory = path.join(directory, 'c')
  const { serve } = serveByHand(t, directory)
  const client = createClient({ runDirectory: directory, checkpointDirectory, dialect: 'path' })
  const created = client.createCheckpoint('vm1')
  await serve((inbox) => {
    writeSet(path.join(inbox, 'ckp'), 1)
    plantOdd(inbox)
  })
  t.match(await created, { name: 'checkpoint' })
  t.equal(checkpointFiles(path.join(checkpointDirectory, 'vm1')).length, 4)
  const failed = rejection(client.createCheckpoint('vm1'))
  await serve(plantOdd)
  t.match(await failed, { code: 'ERR_CHECKPOINT_FAILED' })
  const dead = path.join(checkpointDirectory, 'vm1/.staging/dead')
  fs.mkdirSync(path.join(dead, 'in'), { recursive: true })
  plantOdd(path.join(dead, 'in'))
  t.match(await client.listCheckpoints('vm1'), [{ name: 'checkpoint' }])
  t.notOk(fs.existsSync(dead), 'recovery removes such names, too')
})

t.test('recovery: a stage that cannot be removed blocks no call', needsRoot, async (t) => {
  const root = scratch(t)
  const bhyve = await start(t)
  const file = path.join(root, 'vm1/.staging/dead/in/file')
  fs.mkdirSync(path.dirname(file), { recursive: true })
  fs.chmodSync(path.join(root, 'vm1/.staging'), 0o700)
  fs.writeFileSync(file, '')
  try {
    execFileSync('chattr', ['+i', file], { stdio: 'pipe' })
  } catch {
    t.pass('not run: this file system has no immutable files', { skip: 'no immutable files here' })
    return
  }
  t.teardown(() => execFileSync('chattr', ['-i', file]))
  const client = createClient({
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: root,
    dialect: 'descriptor',
  })
  t.match(await client.createCheckpoint('vm1'), { name: 'checkpoint' })
  t.match(await client.listCheckpoints('vm1'), [{ name: 'checkpoint', state: 'complete' }])
  await client.pinCheckpoint('vm1', 'checkpoint')
  await client.destroyCheckpoint('vm1', 'checkpoint')
  t.strictSame(await client.destroyAll('vm1'), [])
})

t.test('list: a checkpoint that another tool replaced keeps its pin and gets a new time', async (t) => {
  const { runDirectory } = await start(t)
  const checkpointDirectory = scratch(t)
  const client = createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })
  const ours = await client.createCheckpoint('vm1')
  await client.pinCheckpoint('vm1', 'checkpoint')
  t.match(await client.getCheckpoint('vm1', 'checkpoint'), { createdAt: ours.createdAt, pinned: true })
  writeSet(ours.path, 3)
  const later = new Date(Date.now() + 3_600_000)
  fs.utimesSync(ours.path, later, later)
  t.match(await client.listCheckpoints('vm1'), [{ state: 'complete', createdAt: later, pinned: true }])
})

t.test('create: rejects if the checkpoint directory is a dangling link', async (t) => {
  const { runDirectory } = await start(t)
  const directory = scratch(t)
  fs.symlinkSync('/nonexistent/pool', path.join(directory, 'root'))
  const client = createClient({
    runDirectory,
    checkpointDirectory: path.join(directory, 'root'),
    dialect: 'descriptor',
  })
  t.match(await rejection(client.createCheckpoint('vm1')), { code: 'ERR_SYSTEM', vm: 'vm1' })
  t.strictSame(await client.listCheckpoints('vm1'), [])
})

function putSet(root: string, name: string, tag = 1): void {
  fs.mkdirSync(path.join(root, 'vm1'), { recursive: true })
  writeSet(path.join(root, 'vm1', `${name}.ckp`), tag)
}

t.test('a checkpoint that cannot be replaced or destroyed blocks no call for other names', async (t) => {
  const { runDirectory } = await start(t)
  const root = scratch(t)
  for (const name of ['golden', 'other', 'more']) putSet(root, name)
  const client = createClientIn(
    { ...hostEnvironment, pool: () => inlinePool() },
    { runDirectory, checkpointDirectory: root, dialect: 'descriptor' },
  )
  const release = intercept(t, 'renameAt', (_, name, __, toName) =>
    name === 'golden.ckp' && toName === 'replaced' ? failure('EPERM', 'renameat') : undefined,
  )
  t.match(await rejection(client.createCheckpoint('vm1', { name: 'golden' })), {
    code: 'ERR_PERMISSION',
    message: /committed/,
  })
  t.equal((await client.listCheckpoints('vm1')).length, 3)
  await client.createCheckpoint('vm1', { name: 'new' })
  await client.pinCheckpoint('vm1', 'other')
  await client.destroyCheckpoint('vm1', 'more')
  t.strictSame((await client.pruneCheckpoints('vm1', { keepLast: 1 })).removed, [])
  t.match(await rejection(client.destroyCheckpoint('vm1', 'golden')), { code: 'ERR_PERMISSION' })
  t.match(await rejection(client.createCheckpoint('vm1', { name: 'golden' })), { code: 'ERR_PERMISSION' })
  t.strictSame(await client.destroyAll('vm1'), ['new', 'other'])
  release()
  const [golden] = await client.listCheckpoints('vm1')
  t.match(
    golden,
    { name: 'golden', state: 'complete', memoryBytes: 65536 },
    'the committed checkpoint is now in place',
  )
})

t.test('recovery: makes the earlier step durable before it continues', async (t) => {
  const root = scratch(t)
  putSet(root, 'x', 1)
  const { jobs } = await import('../../../dist/worker/jobs.js')
  const directory = path.join(root, 'vm1')
  const calls: string[] = []
  const shown = (descriptor: unknown) => path.relative(directory, pathOfFolder(Number(descriptor), directory))
  for (const name of ['sync', 'renameAt', 'unlinkAt'] as const) {
    intercept(t, name, (descriptor, file) => {
      calls.push(`${name} ${path.join(shown(descriptor), typeof file === 'string' ? file : '')}`)
      return undefined
    })
  }
  fs.mkdirSync(path.join(directory, '.staging/abc.ready'), { recursive: true, mode: 0o700 })
  writeSet(path.join(directory, '.staging/abc.ready/x.ckp'), 2)
  jobs.listCheckpoints(directory, 'vm1')
  t.ok(
    calls.includes('sync .staging') && calls.indexOf('sync .staging') < calls.indexOf('renameAt x.ckp'),
    calls.join(', '),
  )
  calls.length = 0
  fs.mkdirSync(path.join(directory, '.staging/abc.trash'), { recursive: true, mode: 0o700 })
  fs.renameSync(path.join(directory, 'x.ckp'), path.join(directory, '.staging/abc.trash/x.ckp'))
  jobs.listCheckpoints(directory, 'vm1')
  const moved = calls.indexOf('renameAt x.ckp.kern')
  t.ok(
    moved > calls.indexOf('sync .staging/abc.trash') &&
      moved > calls.indexOf('sync .') &&
      calls.includes('sync .'),
    calls.join(', '),
  )
  t.strictSame(checkpointFiles(directory), [])
})

t.test('list: reads again if a checkpoint is replaced meanwhile', async (t) => {
  const root = scratch(t)
  putSet(root, 'x')
  const { jobs } = await import('../../../dist/worker/jobs.js')
  const directory = path.join(root, 'vm1')
  let hidden = 1
  const showAgain = intercept(t, 'readDirectory', () => (hidden-- > 0 ? Buffer.alloc(0) : undefined))
  t.equal(jobs.hasCheckpoints(directory), true, 'published between the first and the second check')
  showAgain()
  let gone = 1
  intercept(t, 'openAt', (_, name) =>
    name === 'x.ckp' && gone-- > 0 ? failure('ENOENT', 'openat') : undefined,
  )
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ name: 'x', state: 'complete' }])
})

t.test('a checkpoint with a file that cannot be read can be destroyed and replaced', async (t) => {
  const { runDirectory } = await start(t)
  const root = scratch(t)
  const client = createClientIn(
    { ...hostEnvironment, pool: () => inlinePool() },
    { runDirectory, checkpointDirectory: root, dialect: 'descriptor' },
  )
  const unreadable = /^[ab]\.ckp\.(meta|manifest)$/
  for (const name of ['a', 'b', 'c']) await client.createCheckpoint('vm1', { name })
  const directory = fs.realpathSync(path.join(root, 'vm1'))
  const { ino } = fs.statSync(directory)
  const isThere = (descriptor: unknown) => fs.fstatSync(Number(descriptor)).ino === ino
  const refuse = (descriptor: unknown, name: unknown) =>
    unreadable.test(String(name)) && isThere(descriptor) ? failure('EACCES', 'openat') : undefined
  readOneByOne(t)
  const releases = (['openAt', 'readStartAt'] as const).map((call) => intercept(t, call, refuse))
  t.match(await client.listCheckpoints('vm1'), [
    { state: 'damaged' },
    { state: 'damaged' },
    { state: 'complete' },
  ])
  await client.destroyCheckpoint('vm1', 'a')
  t.match(await client.createCheckpoint('vm1', { name: 'b' }), { name: 'b' })
  for (const release of releases) release()
  t.match(
    await client.getCheckpoint('vm1', 'b'),
    { pinned: true },
    'the manifest that could not be read may have contained a pin',
  )
  t.strictSame(await client.destroyAll('vm1'), ['b', 'c'])
})

t.test("another user's directory is ignored, or listed without the lock", needsRoot, async (t) => {
  const workdir = scratch(t)
  fs.chmodSync(workdir, 0o755)
  for (const vm of ['ours', 'theirs'])
    fs.mkdirSync(path.join(workdir, 'jails-system', vm, 'checkpoints'), { recursive: true })
  writeSet(path.join(workdir, 'jails-system/ours/checkpoints/a.ckp'), 1)
  execFileSync('chown', ['-R', '65534:65534', path.join(workdir, 'jails-system/ours')])
  fs.chmodSync(path.join(workdir, 'jails-system/theirs'), 0o700)
  const script = forAnyUser('list-as-user.mjs')
  const options: ExecFileSyncOptionsWithStringEncoding = {
    encoding: 'utf8',
    env: childEnvironment(),
    stdio: ['ignore', 'pipe', 'ignore'],
  }
  t.equal(execFileSync(process.execPath, [script, workdir, '65534'], options), '["ours"] ["a complete"]\n')
  fs.mkdirSync(path.join(workdir, 'jails-system/ours/checkpoints/.staging'), { mode: 0o700 })
  t.equal(
    execFileSync(process.execPath, [script, workdir, '65534'], options),
    '["ours"] ["a complete"]\n',
    'the checkpoints are read without the lock',
  )
})

t.test('a pinned checkpoint with the longest name can be replaced', async (t) => {
  // The path for `bhyve -r` has at most 250 bytes. A name of the maximum length needs a very short directory.
  const directory = `/tmp/${process.pid.toString(36).slice(-3)}`
  if (fs.existsSync(directory)) {
    t.pass('not run: the short directory is taken', { skip: 'the short directory is taken' })
    return
  }
  fs.mkdirSync(directory, { mode: 0o700 })
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }))
  const { runDirectory } = await start(t)
  const checkpointDirectory = { directoryOf: () => directory, vms: () => Promise.resolve(['vm1']) }
  const client = createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })
  const name = 'n'.repeat(250 - `${directory}/.ckp`.length)
  t.ok(name.length + '.ckp.manifest.pinned'.length > 255, 'a suffix would make the name too long')
  await client.createCheckpoint('vm1', { name })
  await client.pinCheckpoint('vm1', name)
  t.match(await client.createCheckpoint('vm1', { name }), { name, pinned: true })
})
