/** Checkpoints that record bhyve's arguments, and restores without arguments. */
import fs from 'node:fs'
import path from 'node:path'
import { inspect } from 'node:util'
import t, { type Test } from 'tap'
import { type CheckpointClient } from 'bhyve-checkpoint'
import { createClientIn } from '../../../dist/client/client.js'
import { hostEnvironment } from '../../../dist/client/environment.js'
import { jobs } from '../../../dist/worker/jobs.js'
import { rejection } from '../../support/index.js'
import { World } from '../../support/restore_world.js'
import { MadeStage, nobody, store } from '../../support/stages.js'

const password = 'hunter2'

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

t.test('recorded arguments: a suspended VM is restored without arguments, by any process', async (t) => {
  const world = new World(t)
  await world.begun()
  const { argumentsRecorded } = await world.client.suspend('vm1', { recordArguments: world.args })
  t.equal(argumentsRecorded, true)
  assertRecorded(t, world, 'suspend', world.args)
  const client = world.newClient()
  t.match(await client.listCheckpoints('vm1'), [{ argumentsRecorded: true }])
  const bhyve = world.script()
  const plan = await client.planRestore('vm1', 'suspend', { bhyve })
  t.same(plan.blockers, [])
  const withRestore = world.args.toSpliced(-1, 0, '-r', path.join(world.directory, 'suspend.ckp'))
  t.strictSame(plan.args, withRestore)
  t.equal(plan.directory, process.cwd())
  const { pid } = await client.restore('vm1', 'suspend', { bhyve })
  t.match(await client.listVirtualMachines(), [{ vm: 'vm1', pid, state: 'running' }])
})

t.test('recorded arguments: nothing is recorded by default', async (t) => {
  const world = new World(t)
  await world.saved('a')
  t.notOk('arguments' in world.manifest('a'))
  t.notOk('argumentsRecorded' in (await world.client.getCheckpoint('vm1', 'a')))
  for (const call of ['planRestore', 'restore'] as const) {
    const error = await rejection(world.client[call]('vm1', 'a', { bhyve: world.script() }))
    t.match(error, { code: 'ERR_INVALID_OPTION', vm: 'vm1', checkpoint: 'a' })
    t.match(error.message, /no recorded bhyve arguments.*'args'.*'recordArguments'/)
  }
  t.match(await rejection(world.client.restore('vm1', 'b')), { code: 'ERR_CHECKPOINT_NOT_FOUND' })
})

t.test('recorded arguments: invalid ones are rejected before anything is created or sent', async (t) => {
  const world = new World(t)
  await world.begun()
  const cases: [unknown, RegExp][] = [
    [[...world.args.slice(0, -1), 'vm2'], /they are of VM 'vm2'/],
    [world.args.slice(0, -1), /the VM name is missing/],
    [['-r', '/x', ...world.args], /omit -r/],
    [['-s', `99,fbuf,password=${password}`, ...world.args], /password=\*\*\* has no valid PCI slot/],
    [['-o', `note=${'x'.repeat(64 * 1024)}`, ...world.args], /more than 64 KiB/],
    [['-k', '/nonexistent/conf', 'vm1'], /-k \/nonexistent\/conf cannot be read/],
    [[`-s29,fbuf,password=${password}`, 5], /must be true, false or an array of strings/],
    [[`password=${password}\0`], /without NUL/],
    ['vm1', /must be true, false or an array/],
    [null, /must be true, false or an array/],
  ]
  for (const [recordArguments, message] of cases) {
    const options = { recordArguments } as { recordArguments: string[] }
    for (const call of ['createCheckpoint', 'suspend'] as const) {
      const error = await rejection(world.client[call]('vm1', options))
      t.match(error, { code: 'ERR_INVALID_OPTION', vm: 'vm1' })
      t.match(error.message, message)
      t.notMatch(inspect(error, { depth: 9 }), password)
    }
  }
  t.notOk(fs.existsSync(world.checkpointDirectory), 'nothing was created')
})

function clientOn(world: World, platform: NodeJS.Platform): CheckpointClient {
  const { runDirectory, checkpointDirectory } = world
  const environment = { ...hostEnvironment, system: { platform, release: '15.0-RELEASE' } }
  return createClientIn(environment, { runDirectory, checkpointDirectory })
}

t.test('recorded arguments: true is rejected where bhyve hides its arguments', async (t) => {
  const world = new World(t)
  await world.begun()
  for (const [platform, reason] of [
    ['freebsd', /setproctitle\(3\).*Nothing was sent to bhyve.*'recordArguments'/],
    ['darwin', /does not show the arguments/],
  ] as const) {
    const error = await rejection(clientOn(world, platform).suspend('vm1', { recordArguments: true }))
    t.match(error, { code: 'ERR_INVALID_OPTION', message: reason })
  }
  t.notOk(fs.existsSync(world.checkpointDirectory), 'nothing was created')
  t.match(await world.client.listVirtualMachines(), [{ state: 'running' }])
})

t.test('recorded arguments: recovery publishes them with the state of a dead manager', async (t) => {
  const directory = store(t)
  const words = ['-s3,virtio-blk,/d', `-s29,fbuf,password=${password}`, 'vm1']
  const arguments_ = { words, directory: '/', secrets: [1] }
  const stage = new MadeStage(directory, { writer: { ...nobody, recorded: arguments_ } as typeof nobody })
  stage.release()
  t.match(jobs.listCheckpoints(directory, 'vm1'), [{ state: 'complete', argumentsRecorded: true }])
  const manifest = fs.readFileSync(path.join(directory, 'suspend.ckp.manifest'), 'utf8')
  t.match(JSON.parse(manifest), { arguments: arguments_ })
  t.match(jobs.readRecordedArguments(directory, 'vm1', 'suspend'), { recorded: { words } })
})
