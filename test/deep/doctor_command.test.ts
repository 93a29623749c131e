/** The commands `doctor`, `create --plan` and `suspend --plan`, as processes. */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { CliWorld } from '../support/cli.js'
import { mounted } from '../support/image_world.js'
import { tree } from '../support/index.js'

const args = [
  '--',
  '-c',
  '2',
  '-m',
  '1M',
  '-s',
  '0,hostbridge',
  '-s',
  '3,virtio-blk,/x',
  '-s',
  '31,lpc',
  'vm1',
]

t.test('doctor and plans: the documented commands', async (t) => {
  const world = new CliWorld(t)
  await world.start({ vm: 'vm1' })
  const plan = await world.run({ args: ['create', 'vm1', 'before-upgrade', '--plan'] }, 'pipe')
  t.match(plan, { status: 0, stdout: /nothing known prevents it[^]*warning: devices-unknown/ })
  t.match(await world.run({ args: ['suspend', 'vm1', '--plan', ...args] }, 'pipe'), {
    status: 0,
    stdout: 'vm1: nothing known prevents it, 1.0 MiB of RAM\n',
    stderr: '',
  })
  t.strictSame(tree(world.checkpointDirectory), [], 'nothing was saved')
  const blocked = await world.run({ args: ['create', 'vm2', '--plan', '--json'] }, 'pipe')
  t.equal(blocked.status, 8)
  t.match(JSON.parse(blocked.stdout), {
    type: 'checkpointPlan',
    vm: 'vm2',
    blockers: [{ code: 'not-running' }],
  })
})

t.test('doctor: the exit status is that of the worst finding', async (t) => {
  const world = new CliWorld(t)
  fs.mkdirSync(world.checkpointDirectory, { mode: 0o700 })
  const doctor = (...more: string[]) => world.run({ args: ['doctor', ...more] }, 'pipe')
  t.match(await doctor(), { status: 0, stdout: /^LEVEL +VM +CODE +FINDING\nok +- +addon-loaded/ })
  fs.chmodSync(world.checkpointDirectory, 0o750)
  const warned = await doctor()
  t.equal(warned.status, 1)
  t.match(warned.stdout, /^warning +- +checkpoint-directory-open .*\n {2}Run chmod 700/m)
  fs.chmodSync(world.checkpointDirectory, 0o777)
  t.equal((await doctor()).status, 6)
  const lines = (await doctor('--json')).stdout.trim().split('\n')
  const types = lines.map((line) => (JSON.parse(line) as { type: string }).type)
  t.strictSame([...new Set(types)], ['finding', 'setting'])
  t.notOk(fs.existsSync(path.join(world.checkpointDirectory, 'vm1')))
})

const tmpfs = mounted(t, 'tmpfs', 2 ** 20)

t.test('doctor: checks the memory stage if one is configured', { skip: tmpfs.skip }, async (t) => {
  const world = new CliWorld(t)
  const doctor = (stage: string) =>
    world.run({ args: ['doctor'], env: { BHYVE_MEMORY_STAGE: stage } }, 'pipe')
  const none = await doctor('')
  t.equal(none.status, 0)
  t.notMatch(none.stdout, 'memory-stage-')
  t.match(none.stdout, /^memory_stage +none +default$/m)
  const usable = await doctor(`${tmpfs.directory}/stage`)
  t.equal(usable.status, 0)
  t.match(usable.stdout, /^ok +- +memory-stage-usable +the memory stage '.*stage' is on a tmpfs/m)
  t.match(usable.stdout, /^memory_stage +\/.*\/stage +BHYVE_MEMORY_STAGE$/m)
  t.strictSame(fs.readdirSync(tmpfs.directory), [], 'nothing was created')
  const onDisk = await doctor(world.root)
  t.equal(onDisk.status, 6)
  t.match(onDisk.stdout, /^problem +- +memory-stage-unusable .* is not on a tmpfs\n {2}Mount one there/m)
  const missing = await doctor(`${world.root}/none/stage`)
  t.equal(missing.status, 6)
  t.match(missing.stdout, /does not exist\n {2}Create it on a tmpfs, .*, or check --memory-stage$/m)
})
