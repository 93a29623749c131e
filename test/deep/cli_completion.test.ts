/** Completion of the command line in bash and zsh. */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { isFailure, loadNative } from '../../dist/base/native.js'
import { CliWorld } from '../support/cli.js'
import { childEnvironment, scratch } from '../support/index.js'
import { needs } from '../support/programs.js'
import { running, saved, setFile } from '../support/command_line.js'

/** Makes a directory for PATH with the program of this checkout in it. */
function programDirectory(t: Test): string {
  const program = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url))
  const bin = scratch(t)
  const wrapper = `#!/bin/sh\nexec '${process.execPath}' '${program}' "$@"\n`
  fs.writeFileSync(path.join(bin, 'bhyve-checkpoint'), wrapper, { mode: 0o755 })
  return bin
}

/** Runs the command that the completion function of a shell runs. */
function completionWords(world: CliWorld, ...typed: string[]): { status: number | null; words: string[] } {
  const program = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url))
  const words = [program, 'completion', 'words', typed[0]!, ...world.places, ...typed.slice(1)]
  const { status, stdout } = spawnSync(process.execPath, words, {
    env: childEnvironment(),
    encoding: 'utf8',
    timeout: 60_000,
  })
  return { status, words: stdout.split('\n').slice(0, -1) }
}

t.test('completion does not connect to VMs', async (t) => {
  const world = new CliWorld(t)
  await running(world)
  await world.run({ args: ['pause', 'vm1'] }, 'pipe')
  for (let press = 0; press < 15; press++)
    t.same(completionWords(world, 'resume', ''), { status: 0, words: ['vm1'] })
  const { status, stderr } = await world.run({ args: ['resume', 'vm1'] }, 'pipe')
  t.equal(status, 0, stderr)
})

t.test('completion does not wait for a lock', async (t) => {
  const world = new CliWorld(t)
  await saved(world)
  const native = loadNative()
  const staging = native.openPath(setFile(world, '.staging'), fs.constants.O_DIRECTORY)
  if (isFailure(staging)) throw new Error('open')
  t.equal(native.lock(staging, 'exclusive'), 1)
  t.same(completionWords(world, 'show', 'vm1', ''), { status: 0, words: [] })
  native.close(staging)
  t.same(completionWords(world, 'show', 'vm1', ''), { status: 0, words: ['a', 'b'] })
})

t.test('bash completes commands, options and names', async (t) => {
  const world = new CliWorld(t)
  await saved(world)
  await world.run({ args: ['create', 'vm1', 'with space'] }, 'pipe')
  const bin = programDirectory(t)
  const complete = (...typed: string[]): string[] => {
    const words = ['bhyve-checkpoint', ...typed].map((word) => `'${word}'`).join(' ')
    const script = `eval "$(bhyve-checkpoint completion)"; COMP_WORDS=(${words}); COMP_CWORD=${typed.length}
      _bhyve_checkpoint; printf '%s\\n' "\${COMPREPLY[@]}"`
    const env = childEnvironment({ PATH: `${bin}:${process.env.PATH ?? ''}` })
    const { stdout, stderr } = spawnSync('bash', ['-c', script], { env, encoding: 'utf8' })
    t.equal(stderr, '')
    return stdout.split('\n').filter((word) => word !== '')
  }
  t.same(complete('des'), ['destroy', 'destroyall'])
  t.same(complete('prune', '--keep'), [
    '--keep-last',
    '--keep-hourly',
    '--keep-daily',
    '--keep-weekly',
    '--keep-monthly',
    '--keep-within',
  ])
  t.same(complete('create', ...world.places, 'vm'), ['vm1'])
  t.same(complete('destroy', ...world.places, 'vm1', ''), ['a', 'b', 'with\\ space'])
  t.same(complete('destroy', ...world.places, 'vm1', 'w'), ['with\\ space'])
  t.same(complete('restore', 'vm1', '--', ''), [])
  t.same(complete('rm', ...world.places, 'vm1', 'b'), ['b'])
  t.same(complete('help', 'ver'), ['verify'])
  t.same(complete('completion', 'z'), ['zsh'])
  t.same(complete('create', 'vm1', '--dialect', 'd'), ['descriptor'])
  t.same(complete('create', 'vm1', '--dialect', '=', ''), ['struct', 'path', 'descriptor'])
  t.same(complete('create', 'vm1', '--dialect', '='), ['struct', 'path', 'descriptor'])
  t.same(complete('create', 'vm1', '--dialect', '=', 'p'), ['path'])
  t.same(complete('restore', ...world.places, 'vm1', 'a', '--disks', ''), ['rollback', 'keep', 'clone'])
  t.same(complete('create', 'vm1', '--disks', 'zf'), ['zfs:'])
  t.same(complete('suspend', 'vm1', '--supervisor', ''), ['vm-bhyve', 'mine'])
  t.same(complete('move', 'vm1', '--resolve', ''), ['here', 'elsewhere'])
  t.same(complete('export', 'vm1', 'a', '--compress', ''), ['gzip', 'zstd'])
  t.same(complete('restore', ...world.places, 'vm1', 'a', '--as', ''), ['vm1'])
  t.same(complete('create', 'vm1', '--memory', ''), [], 'the shell offers files')
  t.same(complete('list', '--run-directory', '/nowhere', '--checkpoint-directory', '/nowhere', ''), [])
})

/**
 * Runs zsh at a terminal, types $1 and Tab, and waits for the output $2. If $2 does not appear, zsh hangs until the
 * timeout of the test ends it.
 */
const zshTypes = `zmodload zsh/zpty
  zpty -b shell zsh -f -i
  zpty -w shell 'COLUMNS=1000 PS1=; unsetopt beep; bindkey -e; eval "$(bhyve-checkpoint completion zsh)"; print rea""dy'
  zpty -r -m shell out '*ready*'
  zpty -w -n shell "bhyve-checkpoint $1"$'\\t'
  zpty -r -m shell out "*$2*" && print -r shown
  zpty -d shell`

t.test('zsh completes commands, options and names', needs('zsh'), async (t) => {
  const world = new CliWorld(t)
  await saved(world)
  await world.run({ args: ['create', 'vm1', 'with space'] }, 'pipe')
  const PATH = `${programDirectory(t)}:${process.env.PATH ?? ''}`
  // Without the sanitizers, which would report errors of zsh itself.
  const plain = { LD_PRELOAD: '', BHYVE_CHECKPOINT_PREBUILD: '' }
  const env = childEnvironment({ PATH, HOME: scratch(t), TERM: 'xterm', ...plain })
  for (const [typed, shows] of [
    ['verif', 'verify'],
    ['prune --keep-l', '--keep-last'],
    ['create vm1 --dialect=des', '--dialect=descriptor'],
    [`show ${world.places.join(' ')} v`, ' vm1'],
    [`destroy ${world.places.join(' ')} vm1 w`, 'vm1 with\\\\ space'],
  ] as const) {
    const { stdout, stderr } = spawnSync('zsh', ['-f', '-c', zshTypes, 'zsh', typed, shows], {
      env,
      encoding: 'utf8',
      timeout: 60_000,
    })
    t.equal(stdout, 'shown\n', `${typed} ${stderr}`)
  }
})
