/** What keeps recorded arguments, and which recorded arguments a restore uses. */
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { inspect } from 'node:util'
import t, { type Test } from 'tap'
import { jobs } from '../../../dist/worker/jobs.js'
import { rejection, until } from '../../support/index.js'
import { changeManifest } from '../../support/sets.js'
import { watched, World } from '../../support/restore_world.js'

const password = 'hunter2'
const frameBuffer = ['-s', `29,fbuf,tcp=127.0.0.1:5999,password=${password}`]
const onLinux = process.platform === 'linux' ? {} : { skip: 'only Linux shows the arguments' }
const asRoot = process.geteuid?.() === 0 ? {} : { skip: 'needs root to change an owner' }

function manifestPath(world: World, name: string): string {
  return path.join(world.directory, `${name}.ckp.manifest`)
}

function assertRecorded(t: Test, world: World, name: string, words: readonly string[]): void {
  t.match(
    world.manifest(name),
    { arguments: { words, directory: process.cwd() } },
    `${name} has the arguments`,
  )
  t.equal(fs.statSync(manifestPath(world, name)).mode & 0o777, 0o600, `the mode of ${name}`)
}

/** A VM with a checkpoint `a` that records arguments. The VM is off. */
async function recorded(t: Test, extra: readonly string[] = []): Promise<World> {
  const world = new World(t)
  world.args.unshift(...extra)
  const pid = await world.begun()
  await world.client.createCheckpoint('vm1', { name: 'a', recordArguments: world.args })
  await world.kill(pid)
  return world
}

t.test('recorded arguments: those of the running process, also after a restore', onLinux, async (t) => {
  const world = new World(t)
  await world.begun()
  for (const name of ['a', 'b', 'c']) {
    await world.client.suspend('vm1', { name, recordArguments: true })
    assertRecorded(t, world, name, world.args)
    await world.client.restore('vm1', name, { bhyve: world.script() })
  }
})

t.test('recorded arguments: explicit arguments win', async (t) => {
  const world = await recorded(t)
  const args = ['-c2', '-m4M', '-s0,hostbridge', ...world.args.slice(3)]
  const plan = await world.client.planRestore('vm1', 'a', { args })
  t.same(plan.args.slice(0, 3), args.slice(0, 3))
  t.notOk('directory' in plan)
})

t.test('recorded arguments: a fork is started from them', async (t) => {
  const world = new World(t)
  world.args.splice(3, 2)
  const pid = await world.begun()
  await world.client.createCheckpoint('vm1', { name: 'a', recordArguments: world.args })
  const bhyve = world.script()
  const fork = await world.client.restore('vm1', 'a', { as: 'vm2', bhyve })
  const machines = await world.client.listVirtualMachines()
  t.match(machines, [
    { vm: 'vm1', pid },
    { vm: 'vm2', pid: fork.pid },
  ])
})

t.test('recorded arguments: bhyve runs in the recorded directory', async (t) => {
  const world = new World(t)
  const pid = await world.begun()
  const before = process.cwd()
  const directory = fs.realpathSync(fs.mkdtempSync(path.join(world.root, 'cwd-')))
  t.teardown(() => process.chdir(before))
  process.chdir(directory)
  fs.writeFileSync('d.img', 'a disk')
  fs.writeFileSync('conf', 'memory.size=4M\n')
  const args = ['-c2', '-k', 'conf', '-s0,hostbridge', '-s', '3,virtio-blk,d.img', ...world.args.slice(-4)]
  await world.client.suspend('vm1', { recordArguments: args })
  process.chdir(before)
  await world.kill(pid)
  const bhyve = world.script()
  t.same(await world.client.planRestore('vm1', 'suspend', { bhyve }), {
    ...{ command: bhyve, directory, blockers: [], warnings: [] },
    args: args.toSpliced(-1, 0, '-r', path.join(world.directory, 'suspend.ckp')),
    displayArgs: args.toSpliced(-1, 0, '-r', path.join(world.directory, 'suspend.ckp')),
  })
  fs.renameSync(directory, `${directory}.away`)
  const { blockers } = await world.client.planRestore('vm1', 'suspend', { bhyve })
  t.match(blockers.map(({ message }) => message).join(), /recorded working directory .*ENOENT.*'args'/)
  fs.renameSync(`${directory}.away`, directory)
  const restored = await world.client.restore('vm1', 'suspend', { bhyve })
  if (process.platform === 'linux') t.equal(fs.readlinkSync(`/proc/${String(restored.pid)}/cwd`), directory)
})

t.test('recorded arguments: a process with other arguments is rejected', onLinux, async (t) => {
  const world = new World(t)
  const script = world.script({
    instead: `exec '${process.execPath}' '${path.join(world.root, 'bhyve.mjs')}'`,
  })
  fs.writeFileSync(
    path.join(world.root, 'bhyve.mjs'),
    `import { createServer } from 'node:net'\ncreateServer().listen('${world.runDirectory}/vm1')`,
  )
  spawn(script, world.args, { stdio: 'ignore' })
  await until(() => world.isServed(), 'the socket')
  const error = await rejection(world.client.suspend('vm1', { recordArguments: true }))
  t.match(error, {
    code: 'ERR_INVALID_OPTION',
    message: /running bhyve process cannot be recorded.*Nothing was sent/,
  })
  t.same(await world.client.listCheckpoints('vm1'), [])
})

t.test('recorded arguments: the arguments of a process that has ended are not used', onLinux, async (t) => {
  const ours = { pid: process.pid, startedAt: 'another' }
  t.match(jobs.recordableOfProcess(ours, 'vm1'), { fault: 'the process has ended' })
  t.match(jobs.recordableOfProcess({ pid: 2 ** 30, startedAt: '1' }, 'vm1'), { fault: /ENOENT/ })
})

t.test('recorded arguments: every change of the manifest keeps them and its mode', async (t) => {
  const world = await recorded(t)
  const umask = process.umask(0)
  t.teardown(() => process.umask(umask))
  const { client } = world
  const steps: Record<string, () => Promise<unknown>> = {
    pin: () => client.pinCheckpoint('vm1', 'a'),
    unpin: () => client.pinCheckpoint('vm1', 'a', false),
    'revoked restore': () =>
      client.restore('vm1', 'a', { bhyve: world.script({ instead: 'exit 1' }) }).catch(() => 0),
    restore: () => client.restore('vm1', 'a', { bhyve: world.script() }),
  }
  for (const [step, run] of Object.entries(steps)) {
    fs.chmodSync(manifestPath(world, 'a'), 0o644)
    await run()
    t.comment(step)
    assertRecorded(t, world, 'a', world.args)
  }
  await client.createCheckpoint('vm1', { name: 'a' })
  t.notOk('arguments' in world.manifest('a'), 'a checkpoint that replaces it does not inherit them')
})

t.test('recorded arguments: a manifest that others can write to is not used', async (t) => {
  const world = await recorded(t)
  const file = manifestPath(world, 'a')
  for (const mode of [0o620, 0o602, 0o666]) {
    fs.chmodSync(file, mode)
    const error = await rejection(world.client.restore('vm1', 'a', { bhyve: world.script() }))
    t.match(error, { code: 'ERR_PERMISSION', path: file, vm: 'vm1' })
    t.match(
      error.message,
      /other users can write to the manifest. Nothing was started. Pass the bhyve arguments/,
    )
  }
  t.same((await world.client.planRestore('vm1', 'a', { args: world.args })).blockers, [])
  fs.chmodSync(file, 0o644)
  t.same((await world.client.planRestore('vm1', 'a')).blockers, [])
})

t.test('recorded arguments: a manifest of another user is not used', asRoot, async (t) => {
  const world = await recorded(t)
  fs.chownSync(manifestPath(world, 'a'), 1234, 0)
  const error = await rejection(world.client.planRestore('vm1', 'a'))
  t.match(error, { code: 'ERR_PERMISSION', message: /belongs to uid 1234/ })
})

t.test('recorded arguments: those of another VM or another checkpoint are not used', async (t) => {
  const world = await recorded(t)
  fs.cpSync(world.directory, path.join(world.checkpointDirectory, 'vm2'), { recursive: true })
  const error = await rejection(world.client.planRestore('vm2', 'a'))
  t.match(error, { code: 'ERR_PERMISSION', message: /they are of VM 'vm1'/ })
  fs.utimesSync(path.join(world.directory, 'a.ckp'), 1, 1)
  fs.appendFileSync(path.join(world.directory, 'a.ckp.kern'), 'x')
  t.match(await rejection(world.client.planRestore('vm1', 'a')), { code: 'ERR_INVALID_OPTION' })
})

t.test('recorded arguments: malformed ones count as absent', async (t) => {
  const world = await recorded(t)
  const long = 'x'.repeat(70_000)
  for (const value of [
    ...[null, 1, 'vm1', [], {}, { words: ['vm1'] }, { words: 'vm1', directory: '/' }],
    ...[
      { words: ['vm1', 1], directory: '/' },
      { words: ['vm1'], directory: 'relative' },
    ],
    ...[
      { words: ['a\0b'], directory: '/' },
      { words: [long], directory: '/' },
    ],
  ]) {
    changeManifest(world.directory, 'a', { arguments: value })
    t.notOk('argumentsRecorded' in (await world.client.getCheckpoint('vm1', 'a')))
    t.match(await rejection(world.client.planRestore('vm1', 'a')), { code: 'ERR_INVALID_OPTION' })
  }
})

t.test('recorded arguments: only args of the plan contains the password', async (t) => {
  const world = await recorded(t, frameBuffer)
  const { client } = world
  t.match(world.manifest('a'), { arguments: { secrets: [1] } })
  const { args, ...plan } = await client.planRestore('vm1', 'a')
  t.ok(args.includes(frameBuffer[1] ?? ''), 'args can be used with spawn')
  t.ok(plan.displayArgs.includes(`29,fbuf,tcp=127.0.0.1:5999,password=***`))
  const noInterpreter = path.join(world.root, 'no-interpreter')
  fs.writeFileSync(noInterpreter, '#!/nonexistent\n', { mode: 0o755 })
  const shown = [
    ...[plan, await client.listCheckpoints('vm1'), await client.getCheckpoint('vm1', 'a')],
    ...[
      await client.verifyCheckpoint('vm1', 'a'),
      await rejection(client.restore('vm1', 'a', { bhyve: noInterpreter })),
    ],
    await rejection(client.restore('vm1', 'a', { bhyve: world.script({ instead: 'exit 1' }) })),
  ]
  for (const one of shown) t.notMatch(inspect(one, { depth: 9, showHidden: true }), password)
  t.match(shown[4], { code: 'ERR_RESTORE_FAILED', cause: { code: 'ENOENT' } })
})

t.test('recorded arguments: a checkpoint that is replaced meanwhile is not started with them', async (t) => {
  const world = await recorded(t)
  const client = watched(world, (job) => {
    if (job === 'inspectForRestore') fs.utimesSync(path.join(world.directory, 'a.ckp'), 1, 1)
  })
  const bhyve = world.script()
  t.match(await rejection(client.restore('vm1', 'a', { bhyve })), { code: 'ERR_CHECKPOINT_BUSY' })
  t.equal(world.pidOf(bhyve), 0, 'nothing was started')
})
