/** The bhyve process that a restore starts: what it inherits, how its socket is found, and how it may fail. */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { AbortError } from 'bhyve-checkpoint'
import { simulatedBhyve } from 'bhyve-checkpoint/simulator'
import { PeerMemory } from '../../../dist/bhyve/peer_memory.js'
import { createClientIn } from '../../../dist/client/client.js'
import { isFailure } from '../../../dist/base/native.js'
import { hostEnvironment } from '../../../dist/client/environment.js'
import {
  checkpointFiles,
  contents,
  intercept,
  rejection,
  runScript,
  scratch,
  until,
} from '../../support/index.js'
import { changeManifest } from '../../support/sets.js'
import { native, isAlive, World, codesOf } from '../../support/restore_world.js'

t.test('restore: the VM outlives the restoring process, which exits normally', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const bhyve = world.script()
  const ended = await runScript('restoring.mjs', [world.runDirectory, world.checkpointDirectory, 'a', bhyve])
  t.match(ended, { code: 0, signal: null, stderr: '' })
  const { pid } = JSON.parse(ended.stdout) as { pid: number }
  t.equal(pid, world.pidOf(bhyve))
  await world.client.createCheckpoint('vm1', { name: 'b' })
  t.strictSame(world.digests('b'), world.digests('a'))
})

t.test('restore: bhyve gets its own session, inherits only the log, and leaves no zombie', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const inspect = `ls -l /proc/$$/fd; cut -d' ' -f5,6 /proc/$$/stat; cat`
  const error = await rejection(
    world.client.restore('vm1', 'a', {
      args: world.args,
      bhyve: world.script({ instead: `${inspect}; exit 3` }),
    }),
  )
  const output = error.reply ?? ''
  t.match(output, /0 -> \/dev\/null/, 'standard input is empty')
  t.match(output, /1 -> .*restore\.log/)
  t.match(output, /2 -> .*restore\.log/)
  t.notMatch(output, /\.staging|-> \S*\/vm1$/m)
  const [, group, session] = /^(\d+) (\d+)$/m.exec(output) ?? []
  t.equal(group, session)
  t.not(group, String(process.pid))
  const { pid } = await world.client.restore('vm1', 'a', { args: world.args, bhyve: world.script() })
  process.kill(pid, 'SIGKILL')
  await until(() => isFailure(native.processStatus(pid)), 'no zombie')
})

t.test("restore: bhyve gets a small environment, or the one in the option 'env'", async (t) => {
  const world = new World(t)
  await world.saved('a')
  const bhyve = path.join(world.root, 'env')
  fs.writeFileSync(bhyve, `#!/bin/sh\nenv | sed -n 's/^\\([A-Za-z_]*\\)=.*/\\1/p'\nexit 3\n`, { mode: 0o755 })
  // The shell adds variables, and the test runner adds some to every child.
  const added = /^(PWD|OLDPWD|SHLVL|_.*|NODE_OPTIONS)$/
  const namesOf = async (...more: string[]): Promise<string[]> => {
    const words = [world.runDirectory, world.checkpointDirectory, 'a', bhyve, 'once', ...more]
    const { stdout } = await runScript('restoring.mjs', words, { DATABASE_PASSWORD: 'secret', TZ: 'UTC' })
    const { reply } = JSON.parse(stdout) as { reply: string }
    const names = [...reply.matchAll(/^\w+$/gm)].map(([name]) => name)
    return names.filter((name) => !added.test(name)).sort()
  }
  const allowed = ['HOME', 'LANG', 'PATH', 'TZ']
  t.strictSame(
    await namesOf(),
    allowed.filter((name) => name === 'TZ' || process.env[name] !== undefined),
  )
  t.strictSame(await namesOf(JSON.stringify({ PATH: '/usr/bin:/bin', MALLOC_CONF: 'junk:true' })), [
    'MALLOC_CONF',
    'PATH',
  ])
})

t.test('restore: rejects and revokes the record if bhyve ends before it serves its socket', async (t) => {
  const world = new World(t)
  await world.saved('a', 'bare')
  changeManifest(world.directory, 'a', { ofNewerReleases: 1 })
  fs.rmSync(path.join(world.directory, 'bare.ckp.manifest'))
  const before = world.manifest('a')
  const restoring = (bhyve: string, name = 'a', again = false) =>
    rejection(world.client.restore('vm1', name, { args: world.args, bhyve, again }))
  const failed = await restoring(world.script({ options: { suspendExitCode: 999 } }))
  t.match(failed, { code: 'ERR_RESTORE_FAILED', vm: 'vm1', checkpoint: 'a', vmState: 'off' })
  t.match(failed.message, /exited with status 64.*SIMULATED_BHYVE/s)
  t.match(failed.reply, /suspendExitCode/)
  t.equal(failed.path, path.join(world.directory, 'restore.log'))
  t.strictSame(world.manifest('a'), before, 'the record is revoked')
  t.match(await restoring(world.script({ instead: 'kill -KILL $$' })), {
    message: /killed by SIGKILL.*wrote no output/,
  })
  t.match(await restoring(world.script({ instead: 'exit 0' })), { message: /exited with status 0/ })
  const broken = path.join(world.root, 'broken')
  fs.writeFileSync(broken, '#!/nonexistent/sh\n', { mode: 0o755 })
  t.match(await restoring(broken), { code: 'ERR_RESTORE_FAILED', cause: { code: 'ENOENT' } })
  t.strictSame(world.manifest('a'), before)
  t.match(await restoring(world.script({ instead: 'exit 1' }), 'bare'), { code: 'ERR_RESTORE_FAILED' })
  t.equal((await world.client.getCheckpoint('vm1', 'bare')).restoredAt, undefined)
  const { pid } = await world.client.restore('vm1', 'a', { args: world.args, bhyve: world.script() })
  await world.kill(pid)
  const once = world.manifest('a')
  t.match(await restoring(world.script({ instead: 'exit 1' }), 'a', true), { code: 'ERR_RESTORE_FAILED' })
  t.strictSame(world.manifest('a'), once, 'the earlier record stays')
  t.strictSame(
    checkpointFiles(world.directory).filter((file) => file.startsWith('.staging')),
    [],
  )
})

t.test('restore: the quoted output is short and contains no control characters', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const instead = `i=0; while [ $i -lt 3000 ]; do echo "line $i"; i=$((i+1)); done; printf 'the \\033[31mend\\r\\n'; exit 1`
  const { reply, message } = await rejection(
    world.client.restore('vm1', 'a', { args: world.args, bhyve: world.script({ instead }) }),
  )
  t.match(reply, /line 2999\nthe {2}\[31mend$/)
  t.ok((reply?.split('\n').length ?? 99) <= 20)
  t.ok(message.length < 6000)
  t.ok(fs.statSync(path.join(world.directory, 'restore.log')).size > 20_000, 'the log file has all of it')
})

t.test('restore: accepts only a socket of the started process', async (t) => {
  for (const dialect of ['descriptor', 'struct'] as const) {
    const world = new World(t, dialect)
    await world.saved('a')
    const gate = path.join(world.root, 'gate')
    const bhyve = world.script({ gate })
    let isRestored = false
    // The peer memory of a new client is empty.
    const restoring = world.newClient().restore('vm1', 'a', { args: world.args, bhyve })
    void restoring.then(() => (isRestored = true))
    await world.started(bhyve)
    const socket = path.join(world.runDirectory, dialect === 'struct' ? 'checkpoint/vm1' : 'vm1')
    t.ok(fs.lstatSync(socket).isSocket(), 'the stale socket')
    if (dialect === 'descriptor') {
      fs.rmSync(socket)
      const listener = native.simulator.listenStream(socket, 5)
      if (isFailure(listener)) throw new Error('listen')
      const takeAll = () => {
        let taken = 0
        for (
          let one = native.simulator.accept(listener);
          !isFailure(one);
          one = native.simulator.accept(listener)
        ) {
          native.close(one)
          taken++
        }
        return taken
      }
      await until(() => takeAll() === 1, 'a connection to the other process')
      for (let call = 0; call < 50; call++) await world.client.getCheckpoint('vm1', 'a')
      t.equal(takeAll(), 0, 'only one connection')
      native.close(listener)
    } else {
      for (let call = 0; call < 50; call++) await world.client.getCheckpoint('vm1', 'a')
    }
    t.notOk(isRestored)
    fs.writeFileSync(gate, '')
    t.equal((await restoring).pid, world.pidOf(bhyve))
  }
})

t.test('restore: a cancel or timeout stops the wait, but not bhyve', async (t) => {
  for (const [how, comesUp] of [
    ['abort', true],
    ['abort', false],
    ['timeout', true],
  ] as const) {
    const world = new World(t)
    await world.saved('a')
    const gate = path.join(world.root, 'gate')
    const bhyve = world.script(comesUp ? { gate } : { gate, instead: 'exit 1' })
    const controller = new AbortController()
    const call = world.client.restore('vm1', 'a', {
      args: world.args,
      bhyve,
      ...(how === 'abort' ? { signal: controller.signal } : { timeout: 6_000 }),
    })
    const outcome = call.catch((reason: unknown) => reason)
    await world.started(bhyve)
    controller.abort(new Error('enough'))
    const error = await outcome
    t.match(error, { code: how === 'abort' ? 'ABORT_ERR' : 'ERR_TIMEOUT', begun: true })
    t.equal(error instanceof AbortError, how === 'abort')
    t.ok(isAlive(world.pidOf(bhyve)), 'not killed')
    t.type(world.manifest('a').restoredAt, 'string', 'the restore record stays')
    fs.writeFileSync(gate, '')
    await world.client.idle()
    t.equal(isAlive(world.pidOf(bhyve)), comesUp)
    t.equal(
      world.manifest('a').restoredAt !== undefined,
      comesUp,
      'the record is revoked if bhyve did not start',
    )
    await world.client.pinCheckpoint('vm1', 'a')
  }
  const world = new World(t)
  await world.saved('a')
  const early = { args: world.args, bhyve: world.script(), signal: AbortSignal.abort() }
  const error: unknown = await world.client.restore('vm1', 'a', early).catch((reason: unknown) => reason)
  t.ok(error instanceof AbortError)
  const planned: unknown = await world.client
    .planRestore('vm1', 'a', early)
    .catch((reason: unknown) => reason)
  t.ok(planned instanceof AbortError)
  t.match([error, planned], [{ begun: false }, { begun: false }])
  t.equal(world.manifest('a').restoredAt, undefined)
})

t.test("restore: writes bhyve's output only to a regular file", async (t) => {
  const world = new World(t)
  await world.saved('a')
  const target = path.join(world.root, 'target')
  fs.writeFileSync(target, 'precious')
  const bhyve = world.script()
  const before = world.manifest('a')
  const restoring = (logFile?: string) =>
    rejection(world.client.restore('vm1', 'a', { args: world.args, bhyve, logFile }))
  const link = path.join(world.root, 'link')
  fs.symlinkSync(target, link)
  t.match(await restoring(link), { code: 'ERR_INVALID_OPTION', path: link, message: /symlink/ })
  const hard = path.join(world.root, 'hard')
  fs.linkSync(target, hard)
  t.match(await restoring(hard), {
    code: 'ERR_INVALID_OPTION',
    message: /is not a regular file with one link/,
  })
  t.match(await restoring(world.root), { code: 'ERR_INVALID_OPTION', message: /directory/ })
  t.match(await restoring('/dev/null'), { code: 'ERR_INVALID_OPTION', message: /other/ })
  t.match(await restoring('/nonexistent/log'), { code: 'ERR_SYSTEM', errno: 2 })
  const standard = path.join(world.directory, 'restore.log')
  fs.symlinkSync(target, standard)
  t.match(await restoring(), { code: 'ERR_INVALID_OPTION', path: standard })
  t.equal(fs.readFileSync(target, 'utf8'), 'precious')
  t.equal(world.pidOf(bhyve), 0)
  t.strictSame(world.manifest('a'), before, 'no restore record is written')
  fs.rmSync(standard)
  const own = path.join(world.root, 'own.log')
  fs.writeFileSync(own, 'first\n', { mode: 0o644 })
  const restored = await world.client.restore('vm1', 'a', { args: world.args, bhyve, logFile: own })
  t.equal(restored.logFile, own)
  t.match(fs.readFileSync(own, 'utf8'), /^first\n.*Restoring/s, 'appended to')
  t.equal(fs.statSync(own).mode & 0o777, 0o600)
  t.notOk(fs.existsSync(standard))
  await world.kill(restored.pid)
  const failed = await rejection(
    world.client.restore('vm1', 'a', {
      args: world.args,
      bhyve: world.script({ instead: 'echo second; exit 1' }),
      logFile: own,
      again: true,
    }),
  )
  t.equal(failed.reply, 'second', 'only the output of this process')
})

t.test('restore: the plan reports a bhyve that is not executable, and no record is written', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const before = contents(world.directory)
  const file = path.join(world.root, 'file')
  fs.writeFileSync(file, '', { mode: 0o644 })
  for (const [bhyve, why] of [
    ['/nonexistent/bhyve', 'does not exist'],
    [file, 'is not executable'],
    [world.root, 'is not a regular file'],
    [path.join(file, 'bhyve'), 'does not exist'],
  ] as const) {
    const { blockers } = await world.client.planRestore('vm1', 'a', { args: world.args, bhyve })
    t.strictSame(codesOf({ blockers }), ['arguments-invalid'], why)
    for (const part of [`'${bhyve}' ${why}`, "with the option 'bhyve'"])
      t.ok(blockers[0]?.message.includes(part), part)
    const blocked = await rejection(world.client.restore('vm1', 'a', { args: world.args, bhyve }))
    t.match(blocked, {
      code: 'ERR_RESTORE_BLOCKED',
      vm: 'vm1',
      checkpoint: 'a',
      blockers: [{ code: 'arguments-invalid' }],
    })
  }
  const both = { args: [...world.args, '-r', '/x'], bhyve: file }
  t.strictSame(codesOf(await world.client.planRestore('vm1', 'a', both)), [
    'arguments-invalid',
    'arguments-invalid',
  ])
  t.strictSame(contents(world.directory), before, 'no files have changed, not even the log')
})

t.test(
  'restore: without a bhyve on the host, a plan succeeds and a restore is blocked',
  {
    skip: fs.existsSync('/usr/sbin/bhyve') && 'this host has a bhyve',
  },
  async (t) => {
    const world = new World(t)
    await world.saved('a')
    t.strictSame((await world.client.planRestore('vm1', 'a', { args: world.args })).blockers, [])
    const before = contents(world.directory)
    const blocked = await rejection(world.client.restore('vm1', 'a', { args: world.args }))
    t.strictSame(codesOf(blocked), ['arguments-invalid'])
    t.strictSame(contents(world.directory), before)
  },
)

t.test('restore: finds bhyve in its default run directory', async (t) => {
  const world = new World(t)
  await world.suspended()
  const defaultRunDirectory = scratch(t)
  const environment = { ...hostEnvironment, peers: new PeerMemory(), defaultRunDirectory }
  const { runDirectory, checkpointDirectory } = world
  const client = createClientIn(environment, { runDirectory, checkpointDirectory })
  const args = world.args.filter((word) => word !== '-o' && !word.startsWith('rundir='))
  const run = `export SIMULATED_BHYVE_RUN_DIRECTORY='${defaultRunDirectory}'; exec '${process.execPath}' '${simulatedBhyve}' "$@"`
  const bhyve = world.script({ instead: run })
  const { pid } = await client.restore('vm1', 'suspend', { args, bhyve })
  t.ok(fs.existsSync(path.join(defaultRunDirectory, 'vm1')))
  t.match(
    (await client.planRestore('vm1', 'suspend', { args, again: true })).blockers,
    [{ code: 'already-running' }],
    'the plan finds the running VM there',
  )
  await world.kill(pid)
  t.type(world.manifest('suspend').restoredAt, 'string')
  t.equal(await client.suspendedCheckpoint('vm1'), undefined)
  const blocked = await rejection(client.restore('vm1', 'suspend', { args, bhyve: world.script() }))
  t.match(blocked, { code: 'ERR_RESTORE_BLOCKED', blockers: [{ code: 'already-restored' }] })
})

t.test('restore: does not accept the socket of a process that is ending', async (t) => {
  const world = new World(t)
  await world.saved('a')
  const bhyve = world.script()
  const processStatus = native.processStatus.bind(native)
  let polls = 0
  intercept(t, 'processStatus', (pid) => {
    const status = processStatus(Number(pid))
    if (pid !== world.pidOf(bhyve) || isFailure(status)) return undefined
    if (++polls === 5) process.kill(Number(pid), 'SIGKILL')
    return { ...status, state: 'zombie' }
  })
  const error = await rejection(world.client.restore('vm1', 'a', { args: world.args, bhyve }))
  t.match(error, { code: 'ERR_RESTORE_FAILED', message: /SIGKILL.*The guest may have run/s })
  t.type(world.manifest('a').restoredAt, 'string')
})
