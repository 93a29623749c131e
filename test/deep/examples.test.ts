/** Runs the examples unchanged. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { type CheckpointClient, createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve, SimulatedFleet, simulatedBhyve } from 'bhyve-checkpoint/simulator'
import { childEnvironment, scratch, tree, until } from '../support/index.js'
import { diskStandIn } from '../support/disk_stand_in.js'
import { needs } from '../support/programs.js'
import { command, needsPools, pool } from '../support/zfs_pool.js'
import { mounted } from '../support/image_world.js'

const MiB = 2 ** 20
const example = (name: string): string => fileURLToPath(new URL(`../../examples/${name}`, import.meta.url))

class World {
  readonly root: string
  readonly runDirectory: string
  readonly checkpointDirectory: string
  readonly client: CheckpointClient
  readonly #t: Test

  constructor(t: Test, parent?: string) {
    this.#t = t
    this.root = parent === undefined ? scratch(t) : fs.mkdtempSync(path.join(parent, 'world-'))
    this.runDirectory = path.join(this.root, 'run')
    this.checkpointDirectory = path.join(this.root, 'checkpoints')
    fs.mkdirSync(this.runDirectory)
    this.client = createClient({
      runDirectory: this.runDirectory,
      checkpointDirectory: this.checkpointDirectory,
    })
  }

  start(name: string, args: readonly string[] = [], extra: Record<string, string> = {}): Running {
    const env = childEnvironment({
      RUN_DIRECTORY: this.runDirectory,
      CHECKPOINT_DIRECTORY: this.checkpointDirectory,
      ...extra,
    })
    const running = new Running(spawn(process.execPath, [example(name), ...args], { env, stdio: 'pipe' }))
    this.#t.teardown(() => running.child.kill('SIGKILL'))
    return running
  }
}

class Running {
  readonly child: ChildProcess
  readonly ended: Promise<unknown>
  stdout = ''
  stderr = ''

  constructor(child: ChildProcess) {
    this.child = child
    this.ended = once(child, 'close')
    child.stdout?.setEncoding('utf8').on('data', (text: string) => (this.stdout += text))
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (this.stderr += text))
  }

  async status(): Promise<number | null> {
    await this.ended
    return this.child.exitCode
  }

  printed(what: string | RegExp): Promise<void> {
    return until(
      () => new RegExp(what).test(this.stdout),
      `${String(what)} in: ${this.stdout}${this.stderr}`,
      60_000,
    )
  }
}

t.test(
  'frozen-disks: snapshots the dataset at the moment of the checkpoint, and removes a snapshot that did not count',
  async (t) => {
    const world = new World(t)
    const { root, runDirectory, checkpointDirectory, client } = world
    const bhyve = await SimulatedBhyve.start({
      vm: 'vm1',
      memoryBytes: 8 * MiB,
      writeRate: 8 * MiB,
      runDirectory,
    })
    t.teardown(() => bhyve.stop())
    const log = path.join(root, 'zfs.log')
    const programs = path.join(root, 'bin')
    fs.mkdirSync(programs)
    const zfs = (status: number): void =>
      fs.writeFileSync(
        path.join(programs, 'zfs'),
        `#!/bin/sh\necho "$@" >>'${log}'\n[ $1 = destroy ] || exit ${status}\n`,
        {
          mode: 0o755,
        },
      )
    const run = (name: string): Running =>
      world.start('frozen-disks.mjs', ['vm1', 'tank/vm1', name], {
        PATH: `${programs}:${process.env.PATH ?? ''}`,
        CHECKPOINT_DIRECTORY: checkpointDirectory,
      })
    zfs(0)
    const saved = run('one')
    t.equal(await saved.status(), 0, saved.stderr)
    const { files } = await client.getCheckpoint('vm1', 'one')
    const { id } = JSON.parse(fs.readFileSync(files.manifest ?? '', 'utf8')) as { id: string }
    t.match(saved.stdout, `belongs to tank/vm1@${id}; the guest was frozen for`)
    t.equal(fs.readFileSync(log, 'utf8'), `snapshot tank/vm1@${id}\n`)
    zfs(1)
    const failed = run('two')
    t.equal(await failed.status(), 1)
    t.match(failed.stderr, /Checkpoint 'two' of VM 'vm1' was not created: capturing its disks failed/)
    const [, snapshot, destroy] = fs.readFileSync(log, 'utf8').trim().split('\n')
    t.match(snapshot, /^snapshot tank\/vm1@/)
    t.equal(destroy, snapshot?.replace('snapshot', 'destroy'))
  },
)

/** The drill of two VMs whose disks are in these directories. */
async function drills(
  t: Test,
  parent: string,
  directories: [string, string],
  env: Record<string, string> = {},
): Promise<void> {
  const world = new World(t, parent)
  const { root, runDirectory, client } = world
  const bhyve = path.join(root, 'bhyve')
  fs.writeFileSync(bhyve, diskStandIn, { mode: 0o755 })
  const fleet: Record<string, { args: string[]; replace: Record<string, string> }> = {}
  for (const [index, vm] of ['one', 'two'].entries()) {
    const disk = path.join(directories[index]!, `${vm}.img`)
    fs.writeFileSync(disk, Buffer.alloc(MiB))
    const saving = { memoryBytes: 8 * MiB, writeRate: 16 * MiB }
    const running = await SimulatedBhyve.start({ vm, ...saving, runDirectory, disks: [disk] })
    t.teardown(() => running.stop())
    const devices = [
      '-s0,hostbridge',
      '-s2,ahci-cd,/cd',
      `-s3,virtio-blk,${disk}`,
      '-s4,virtio-net,tap0',
      '-s31,lpc',
    ]
    const args = ['-c2', '-m8M', ...devices, '-o', `rundir=${runDirectory}`, vm]
    fleet[vm] = { args, replace: { tap0: 'tap90' } }
  }
  for (let night = 1; night <= 8; night++)
    await client.createCheckpoint('one', { name: `nightly-2020-01-0${night}`, fsync: false })
  const file = path.join(root, 'fleet.json')
  fs.writeFileSync(file, JSON.stringify(fleet))
  const before = directories.map((directory) => fs.readdirSync(directory))
  const drill = (seconds = '0.2'): Running =>
    world.start('restore-drill.mjs', [file], { BHYVE: bhyve, DRILL_SECONDS: seconds, ...env })
  const good = drill()
  t.equal(await good.status(), 0, good.stderr)
  t.match(good.stdout, /^one: saved nightly-.*; the guest was frozen for \d+ ms\ntwo: saved/)
  for (const vm of ['one', 'two'])
    t.match(good.stdout, new RegExp(`^${vm}: nightly-.* can be restored$`, 'm'))
  t.equal((await client.listCheckpoints('one')).length, 7, 'old nights are removed')
  t.strictSame(
    directories.map((directory) => fs.readdirSync(directory)),
    before,
    'nothing is left of the copies',
  )
  t.strictSame(fs.readdirSync(world.checkpointDirectory).sort(), ['one', 'two'], 'nor of the forks')
  t.match(
    (await client.listVirtualMachines()).map(({ vm, state }) => `${vm} ${state}`),
    ['drill-one off', 'drill-two off', 'one running', 'two running'],
  )

  // The restored bhyve ends soon, and one VM does not exist.
  fs.writeFileSync(
    bhyve,
    diskStandIn.replace('exec ', () => '( sleep 1; kill -9 $$ ) &\nexec '),
  )
  fs.writeFileSync(file, JSON.stringify({ ...fleet, none: fleet.one }))
  const bad = drill('30')
  t.equal(await bad.status(), 1)
  t.match(bad.stderr, /^FAILED none: saving: VM 'none' is not running/m)
  t.match(bad.stderr, /^FAILED none: the drill: there is no complete checkpoint with disks$/m)
  t.match(bad.stderr, /^FAILED one: the drill: nightly-.*: the fork ended with SIGKILL: see .*restore\.log$/m)
  t.strictSame(
    directories.map((directory) => fs.readdirSync(directory)),
    before,
    'nothing is left of the copies',
  )
}

const xfs = mounted(t, 'xfs', 512 * MiB)

t.test(
  'restore-drill: forks the newest checkpoint of each VM on image files',
  { skip: xfs.skip },
  async (t) => {
    const images = fs.mkdtempSync(path.join(xfs.directory, 'images-'))
    const programs = scratch(t)
    // No test of this file may need the daemon of another one.
    fs.writeFileSync(path.join(programs, 'zfs'), '#!/bin/sh\nexit 0\n', { mode: 0o755 })
    const env = { PATH: `${programs}:${process.env.PATH ?? ''}` }
    await drills(t, xfs.directory, [images, images], env)
  },
)

t.test('restore-drill: forks the newest checkpoint of each VM on ZFS', needsPools(), async (t) => {
  const { name, root } = await pool(t)
  for (const vm of ['one', 'two']) command(`zfs create ${name}/${vm}`)
  await drills(t, scratch(t), [path.join(root, 'one'), path.join(root, 'two')])
  t.strictSame(command(`zfs list -H -o name -r ${name}`).split('\n'), [name, `${name}/one`, `${name}/two`])
})

t.test('nightly: saves all VMs, prunes old checkpoints and prints alerts', async (t) => {
  const world = new World(t)
  const { runDirectory, client } = world
  const fleet = await SimulatedFleet.start({ vms: ['a', 'b', 'c'], memoryBytes: MiB, runDirectory })
  const fault = { at: 'device', kind: 'fail' } as const
  const failing = await SimulatedBhyve.start({ vm: 'bad', memoryBytes: MiB, runDirectory, fault })
  t.teardown(() => Promise.all([fleet.stop(), failing.stop()]))
  for (let night = 1; night <= 8; night++)
    await client.createCheckpoint('a', { name: `nightly-2020-01-0${night}` })
  const run = world.start('nightly.mjs')
  t.equal(await run.status(), 1)
  t.match(run.stdout, /^a: nightly-\d{4}-\d\d-\d\d, \d+ bytes; 2 pruned$/m)
  t.match(run.stderr, /^ALERT bad: ERR_CHECKPOINT_FAILED: .*; the VM is running$/m)
  t.equal((await client.listCheckpoints('a')).length, 7)
  for (const vm of ['b', 'c']) t.match(await client.listCheckpoints(vm), [{ state: 'complete' }])
  t.same(await client.listCheckpoints('bad'), [])
  await failing.stop()
  t.equal(await world.start('nightly.mjs').status(), 0, 'status 0 if all VMs were saved')
})

t.test('host-reboot: suspends all VMs before a reboot and restores them after it', async (t) => {
  const world = new World(t)
  const { runDirectory, client } = world
  const one = await SimulatedBhyve.start({ vm: 'one', memoryBytes: MiB, runDirectory })
  const two = await SimulatedBhyve.start({ vm: 'two', memoryBytes: MiB, runDirectory })
  t.teardown(() => Promise.all([one.stop(), two.stop()]))
  await client.pause('two')
  await client.createCheckpoint('one', { name: 'running' })
  const suspend = world.start('host-reboot.mjs', ['suspend'])
  t.equal(await suspend.status(), 0, suspend.stderr)
  t.match(
    (await client.listVirtualMachines()).map(({ state }) => state),
    ['off', 'off'],
  )

  const bhyve = path.join(world.root, 'bhyve')
  fs.writeFileSync(bhyve, `#!/bin/sh\nexec '${process.execPath}' '${simulatedBhyve}' "$@"\n`, { mode: 0o755 })
  for (const vm of ['one', 'two']) {
    const devices = [
      '-s0,hostbridge',
      '-s2,ahci-cd,/cd',
      '-s3,virtio-blk,/d',
      '-s4,virtio-net,tap0',
      '-s31,lpc',
    ]
    const args = ['-c2', '-m1M', ...devices, '-o', `rundir=${runDirectory}`, vm]
    fs.writeFileSync(path.join(world.root, `${vm}.json`), JSON.stringify(args))
  }
  const env = { BHYVE: bhyve, ARGUMENTS_DIRECTORY: world.root }
  const restore = world.start('host-reboot.mjs', ['restore'], env)
  t.equal(await restore.status(), 0, restore.stderr)
  const machines = await client.listVirtualMachines()
  t.teardown(() => machines.forEach(({ pid }) => process.kill(pid!, 'SIGKILL')))
  t.match(machines, [
    { vm: 'one', state: 'running' },
    { vm: 'two', state: 'running' },
  ])
  const again = world.start('host-reboot.mjs', ['restore'], env)
  t.equal(await again.status(), 0)
  t.equal(again.stdout, '', 'nothing is restored twice')
})

interface Send {
  key?: string
  token?: string
  body?: unknown
}

/** The example as its callers see it. */
async function httpService(
  world: World,
  extra: Record<string, string> = {},
): Promise<{ service: Running; call: (method: string, resource: string, send?: Send) => Promise<Response> }> {
  const service = world.start('http-service.mjs', [], { TOKEN: 'secret', PORT: '0', ...extra })
  await service.printed('http://')
  const address = service.stdout.trim()
  const call = (method: string, resource: string, { key, token = 'secret', body }: Send = {}) =>
    fetch(`${address}/${resource}`, {
      method,
      headers: {
        authorization: `Bearer ${token}`,
        ...(key !== undefined && { 'idempotency-key': key }),
        ...(body !== undefined && { 'content-type': 'application/json' }),
      },
      ...(body !== undefined && { body: JSON.stringify(body) }),
    })
  return { service, call }
}

t.test('http-service: creates with progress as server-sent events, lists and destroys', async (t) => {
  const world = new World(t)
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: MiB, runDirectory: world.runDirectory })
  t.teardown(() => bhyve.stop())
  const { service, call } = await httpService(world)
  t.equal((await call('GET', 'vms/vm1/checkpoints', { token: 'guess' })).status, 401)
  t.equal((await call('POST', 'vms/vm1/checkpoints/first')).status, 400, 'without a key')

  const key = '4711'
  const events = await (await call('POST', 'vms/vm1/checkpoints/first', { key })).text()
  t.match(events, /^event: progress\ndata: \{"vm":"vm1","name":"first","phase":"queued"/)
  const [created = ''] = /\n\nevent: created\ndata: \{"vm":"vm1","name":"first","id":"[^"]+"\}\n\n$/.exec(
    events,
  )!
  t.match(await (await call('GET', 'vms/vm1/checkpoints')).json(), [
    { name: 'first', state: 'complete', labels: { owner: 'http-service', request: key } },
  ])
  const again = await (await call('POST', 'vms/vm1/checkpoints/first', { key })).text()
  t.equal(`\n\n${again}`, created, 'a repeated request has the same result, and saves nothing')
  const other = await (await call('POST', 'vms/vm1/checkpoints/first', { key: '4712' })).text()
  t.match(other, /event: failed\ndata: \{.*"code":"ERR_CHECKPOINT_EXISTS".*"retryable":false/)

  const refused = await call('POST', 'vms/vm2/checkpoints/first', { key })
  t.equal(refused.status, 409)
  t.match(await refused.json(), { blockers: [{ code: 'not-running' }] })
  await bhyve.stop()
  const late = await (await call('POST', 'vms/vm1/checkpoints/first', { key })).text()
  t.equal(`\n\n${late}`, created, 'also if the VM has ended since')

  t.equal((await call('DELETE', 'vms/vm1/checkpoints/first')).status, 204)
  const absent = await call('DELETE', 'vms/vm1/checkpoints/first')
  t.equal(absent.status, 404)
  t.match(await absent.json(), { code: 'ERR_CHECKPOINT_NOT_FOUND', retryable: false, vm: 'vm1' })
  t.equal((await call('GET', 'vms/%2e%2e/checkpoints')).status < 500, true)
  service.child.kill('SIGTERM')
  t.equal(await service.status(), 0)
})

t.test(
  'http-service: records arguments, prunes only its own checkpoints, and diagnoses the host',
  async (t) => {
    const world = new World(t)
    const { client, runDirectory } = world
    const fleet = await SimulatedFleet.start({ vms: ['vm1', 'vm2'], memoryBytes: MiB, runDirectory })
    t.teardown(() => fleet.stop())
    const { call } = await httpService(world, { REPEAT_MS: '0' })
    const args = ['-c2', '-m1M', '-s0,hostbridge', '-s31,lpc', 'vm1']
    for (const [key, body] of Object.entries({ first: { args }, second: { args } }))
      t.match(
        await (await call('POST', `vms/vm1/checkpoints/${key}`, { key, body })).text(),
        /event: created\n/,
      )
    t.equal((await client.getCheckpoint('vm1', 'second')).argumentsRecorded, true)
    const invalid = await call('POST', 'vms/vm1/checkpoints/third', { key: 'third', body: { args: 'vm1' } })
    t.equal(invalid.status, 400)
    t.match(await invalid.json(), { code: 'ERR_INVALID_OPTION' })

    await client.createCheckpoint('vm1', { name: 'of somebody else' })
    await client.createCheckpoint('vm2', { name: 'of somebody else' })
    const planned = [
      { vm: 'vm1', removed: ['first'] },
      { vm: 'vm2', removed: [] },
    ]
    t.match(await (await call('POST', 'prune?dryRun')).json(), planned)
    t.match(await (await call('POST', 'prune')).json(), planned)
    const { checkpoints } = (await (await call('GET', 'checkpoints')).json()) as { checkpoints: unknown[] }
    t.match(checkpoints, [
      { vm: 'vm1', name: 'second' },
      { vm: 'vm1', name: 'of somebody else' },
      { vm: 'vm2', name: 'of somebody else' },
    ])
    t.equal(checkpoints.length, 3)

    const healthy = await call('GET', 'health')
    const findings = (await healthy.json()) as { level: string }[]
    t.same(
      findings.filter(({ level }) => level === 'problem'),
      [],
    )
    t.equal(healthy.status, 200)
    fs.chmodSync(runDirectory, 0o777)
    t.equal((await call('GET', 'health')).status, 503, 'others can rename the sockets')
  },
)

t.test('http-service: SIGTERM reports what is in flight, and completes it', async (t) => {
  const world = new World(t)
  const { client, runDirectory } = world
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: MiB, writeRate: MiB, runDirectory })
  t.teardown(() => bhyve.stop())
  const { service, call } = await httpService(world, { REPORT_MS: '50' })
  const response = await call('POST', 'vms/vm1/checkpoints/last', { key: '4711' })
  let text = ''
  for await (const piece of response.body!.pipeThrough(new TextDecoderStream())) {
    if (!text.includes('saving') && piece.includes('saving')) service.child.kill('SIGTERM')
    text += piece
  }
  t.match(text, /event: created/)
  t.equal(await service.status(), 0)
  t.match(service.stderr, /^In flight: \[\{"operation":"create","vm":"vm1","checkpoint":"last","begun":true/)
  t.match(await client.getCheckpoint('vm1', 'last'), { labels: { request: '4711' } })
})

async function startRedis(t: Test, directory: string): Promise<string> {
  const socket = path.join(directory, 'redis.sock')
  const settings = [
    '--port',
    '0',
    '--unixsocket',
    socket,
    '--save',
    '',
    '--appendonly',
    'no',
    '--dir',
    directory,
  ]
  const redis = spawn('redis-server', settings, { stdio: 'ignore' })
  const ended = once(redis, 'exit')
  t.teardown(async () => {
    redis.kill()
    await ended
  })
  await until(() => fs.existsSync(socket), 'redis listens')
  return socket
}

t.test(
  'fleet: if a worker is killed during a job, another worker does the job exactly once',
  needs('redis-server'),
  async (t) => {
    const world = new World(t)
    const { runDirectory, client } = world
    const guest = { memoryBytes: 8 * MiB, writeRate: 8 * MiB }
    const bhyve = await SimulatedBhyve.start({ vm: 'vm:1', runDirectory, ...guest })
    t.teardown(() => bhyve.stop())
    const env = { REDIS_SOCKET: await startRedis(t, scratch(t)), LOCK_MS: '1000' }
    for (const time of ['once', 'twice']) {
      const enqueue = world.start('fleet.mjs', ['enqueue', 'host1', 'vm:1', '2026-11-25'], env)
      t.equal(await enqueue.status(), 0, `${time} ${enqueue.stderr}`)
      t.equal(enqueue.stdout, 'host1_vm%3A1_2026-11-25\n')
    }
    const first = world.start('fleet.mjs', ['worker', 'host1'], env)
    const saving = path.join(world.checkpointDirectory, 'vm:1')
    await until(
      () => tree(saving).some((file) => /\/in\/.+/.test(file)),
      `bhyve writes ${first.stderr}`,
      60_000,
    )
    first.child.kill('SIGKILL')
    await first.ended

    const second = world.start('fleet.mjs', ['worker', 'host1'], env)
    await second.printed(/^done host1_vm%3A1_2026-11-25$/m)
    const [only, ...others] = await client.listCheckpoints('vm:1')
    t.match(only, { name: 'nightly-2026-11-25', state: 'complete' })
    t.same(others, [])
    second.child.kill('SIGTERM')
    t.equal(await second.status(), 0)
    t.notMatch(second.stdout, /(done.*\n){2}/, 'queued twice, run once')
    t.same(
      tree(saving).filter((file) => /staging\/./.test(file)),
      [],
      'the first worker left nothing behind',
    )
  },
)
