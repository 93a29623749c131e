/** Settings and CBSD's directories on the command line, as processes. */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { CliWorld } from '../support/cli.js'
import { childEnvironment } from '../support/index.js'

const program = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url))

function run(
  words: string[],
  env: Record<string, string>,
): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(process.execPath, [program, ...words], {
    env: childEnvironment({
      BHYVE_RUN_DIRECTORY: '',
      BHYVE_CHECKPOINT_DIRECTORY: '',
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
