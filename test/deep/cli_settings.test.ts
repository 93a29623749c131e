/** Settings and CBSD's directories on the command line, as processes. */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { CliWorld } from '../support/cli.js'
import { mounted } from '../support/image_world.js'
import { childEnvironment, tree } from '../support/index.js'

const program = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url))

function run(
  words: string[],
  env: Record<string, string>,
): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(process.execPath, [program, ...words], {
    env: childEnvironment({
      BHYVE_RUN_DIRECTORY: '',
      BHYVE_CHECKPOINT_DIRECTORY: '',
      BHYVE_MEMORY_STAGE: '',
      cbsd_workdir: '',
      ...env,
    }),
    encoding: 'utf8',
    timeout: 60_000,
  })
}

t.test('commands use the environment and the file, and doctor prints the settings', async (t) => {
  const world = new CliWorld(t)
  await world.start({ vm: 'vm1' })
  const { runDirectory, checkpointDirectory } = world
  const file = path.join(world.root, 'our.conf')
  fs.writeFileSync(file, `checkpoint_directory = ${checkpointDirectory}\n`, { mode: 0o600 })
  const env = { BHYVE_RUN_DIRECTORY: runDirectory }
  const config = ['--config', file]
  t.match(run(['create', 'vm1', ...config], env), { status: 0, stdout: `\n  ${checkpointDirectory}/vm1/` })
  t.match(run(['list', 'vm2', ...config], env), {
    status: 5,
    stderr: `VM 'vm2' has no checkpoints in ${checkpointDirectory} and no socket in ${runDirectory} `,
  })
  const { stdout } = run(['doctor', ...config], env)
  const [, printed = ''] = stdout.split('\n\n')
  const rows = printed.split('\n').map((line) => line.split(/ {2,}/))
  t.strictSame(rows.slice(0, 3), [
    ['SETTING', 'VALUE', 'FROM'],
    ['run_directory', runDirectory, 'BHYVE_RUN_DIRECTORY'],
    ['checkpoint_directory', checkpointDirectory, `${file}:1`],
  ])
  const lines = run(['doctor', ...config, '--json'], env)
    .stdout.trim()
    .split('\n')
  const objects = lines.map((line) => JSON.parse(line) as Record<string, string>)
  t.strictSame(
    objects.filter(({ type }) => type === 'setting').map(({ key, from }) => [key, from]),
    [
      ['run_directory', 'BHYVE_RUN_DIRECTORY'],
      ['checkpoint_directory', `${file}:1`],
      ['cbsd_workdir', 'default'],
      ['memory_stage', 'default'],
      ['config', '--config'],
    ],
  )
  t.match(run(['list', '--config', `${file}.none`], env), { status: 2, stderr: /does not exist/ })
  t.match(run(['list'], { BHYVE_RUN_DIRECTORY: 'run' }), {
    status: 2,
    stderr: /^bhyve-checkpoint: BHYVE_RUN_DIRECTORY must be an absolute path: "run"$/m,
  })
  t.equal(run(['completion', 'words', 'show', ...config, ''], env).stdout, 'vm1\n')
  t.match(run(['completion', 'words', 'list', '--'], env).stdout, /^--config$/m)
})

t.test('arguments of CBSD are refused with the name of the right command', async (t) => {
  const world = new CliWorld(t)
  await world.start({ vm: 'jname=x' })
  for (const command of ['create', 'suspend', 'pause'])
    t.match(await world.run({ args: [command, 'jname=x'] }, 'pipe'), {
      status: 2,
      stderr: /run bcheckpoint, /,
    })
  t.match(await world.run({ args: ['create', '--', 'jname=x', 'a'], bare: false }, 'pipe'), {
    status: 0,
    stdout: /^created jname=x\/a/,
  })
})

t.test('an empty value of an option is an error, because a script has not set its variable', (t) => {
  const options = ['--config', '--checkpoint-directory', '--run-directory', '--prefix']
  for (const option of options)
    for (const words of [[option, ''], [`${option}=`]]) {
      const { status, stderr } = run(['prune', 'vm1', '--keep-last', '1', ...words], {})
      t.equal(status, 2, words.join(' '))
      t.match(stderr, `The option '${option}' needs a value: `)
    }
  t.end()
})

t.test('--cbsd does not create a missing work directory', async (t) => {
  const world = new CliWorld(t)
  await world.start({ vm: 'vm1' })
  const workdir = path.join(world.root, 'jails')
  const args = ['--cbsd', workdir, '--run-directory', world.runDirectory]
  for (const command of ['create', 'suspend', 'list', 'destroyall'])
    t.match(
      await world.run({ args: [command, 'vm1', ...args], bare: true }, 'pipe'),
      { status: 2, stderr: `CBSD's work directory '${workdir}' does not exist` },
      command,
    )
  t.notOk(fs.existsSync(workdir))
})

const tmpfs = mounted(t, 'tmpfs', 4 * 2 ** 20)

t.test('create uses the memory stage and prints why it does not', { skip: tmpfs.skip }, async (t) => {
  const world = new CliWorld(t)
  await world.start({ vm: 'vm1' })
  await world.start({ vm: 'vm2', memoryBytes: 16 * 2 ** 20, zeroFraction: 0 })
  const file = path.join(world.root, 'our.conf')
  fs.writeFileSync(file, `memory_stage = ${tmpfs.directory}/stage\n`, { mode: 0o600 })
  const command = (args: string[], env: Record<string, string> = {}) =>
    world.run({ args: [...args, '--config', file], env: { BHYVE_MEMORY_STAGE: '', ...env } }, 'pipe')
  const used = async (args: string[], env?: Record<string, string>): Promise<unknown[]> => {
    const { stdout } = await command([...args, '--json'], env)
    const { type, stage, diskReason } = JSON.parse(stdout.trim().split('\n').at(-1)!) as Record<
      string,
      string
    >
    return [type, stage, diskReason]
  }
  const reason = async (args: string[]): Promise<string | undefined> => {
    const { status, stdout } = await command(args)
    t.equal(status, 0)
    return stdout.split('\n')[2]
  }
  t.equal(
    await reason(['create', 'vm1']),
    "  written on the disk: the size of the guest's RAM is not known, because this bhyve has written no checkpoint yet",
  )
  t.equal(await reason(['create', 'vm1']), '', 'it went through memory')
  t.equal(await reason(['create', 'vm1', '-v']), '  written into the memory stage first')
  t.match(await command(['create', 'vm1', '-q']), { status: 0, stdout: '' })
  t.strictSame(await used(['create', 'vm1']), ['checkpoint', 'memory', undefined])
  t.strictSame(await used(['create', 'vm1', '--memory-stage', 'none']), ['checkpoint', undefined, undefined])
  t.equal(await reason(['create', 'vm1', '-v', '--memory-stage', 'none']), '')
  t.strictSame(await used(['create', 'vm1'], { BHYVE_MEMORY_STAGE: 'none' }), [
    'checkpoint',
    undefined,
    undefined,
  ])
  t.equal(
    await reason(['create', 'vm2', '--memory', '1M']),
    '  written on the disk: the memory stage filled up during the save, so the guest was frozen twice',
  )
  t.equal(await reason(['create', 'vm2']), '  written on the disk: the memory stage is full')
  t.strictSame(tree(`${tmpfs.directory}/stage`), [])
  t.equal(await reason(['suspend', 'vm2', '-v']), '', 'a suspend never goes through memory')
  t.strictSame(await used(['suspend', 'vm1']), ['checkpoint', 'disk', 'suspend'])
  t.match(await command(['suspend', 'vm1', '--memory-stage', '/x']), { status: 2, stderr: /Unknown option/ })
})

t.test('create fails if the memory stage cannot be used, and names the option', async (t) => {
  const world = new CliWorld(t)
  await world.start({ vm: 'vm1' })
  const command = (directory: string) =>
    world.run({ args: ['create', 'vm1', '--memory', '1M', '--memory-stage', directory] }, 'pipe')
  t.match(await command('/'), {
    status: 2,
    stderr: /^bhyve-checkpoint: --memory-stage must be an absolute path/,
  })
  t.match(await command(world.root), { status: 2, stderr: /memory stage '.*' is not on a tmpfs/ })
  t.match(await world.run({ args: ['list', 'vm1'] }, 'pipe'), { stdout: '', stderr: /no checkpoints/ })
})
