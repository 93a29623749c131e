/** The manual page has everything that the command line has, and mandoc accepts it. */
import { execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { commands } from '../../dist/cli/commands/all_commands.js'
import { configurationFile, configurationKeys, environmentVariables } from '../../dist/cli/environment.js'
import { exitStatus } from '../../dist/cli/exit_status.js'
import { clientOptions, commonOptions } from '../../dist/cli/parse.js'
import { childEnvironment } from '../support/index.js'
import { needs } from '../support/programs.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const page = `${root}man/bhyve-checkpoint.8`

t.test('the page is generated from the present tables', (t) => {
  const words = [`${root}scripts/man-page.mjs`, '--check']
  const { status, stderr } = spawnSync(process.execPath, words, { encoding: 'utf8', env: childEnvironment() })
  t.equal(status, 0, stderr)
  t.end()
})

t.test('mandoc has no remarks', needs('mandoc'), (t) => {
  const { stdout, stderr } = spawnSync('mandoc', ['-T', 'lint', page], { encoding: 'utf8' })
  // The pages of FreeBSD exist only there.
  const remarks = `${stdout}${stderr}`
    .split('\n')
    .filter((line) => line !== '' && !/referenced manual not found|outdated mandoc\.db/.test(line))
  t.same(remarks, [])
  t.end()
})

t.test('the page has every command, option, exit status and variable', needs('mandoc'), (t) => {
  const rendered = execFileSync('mandoc', ['-T', 'ascii', '-O', 'width=200', page], { encoding: 'utf8' })
  // A character, a backspace and the same character are a bold one.
  const text = rendered.replace(/.[\b]/g, '')
  const section = (name: string): string =>
    new RegExp(`^${name}\\n([^]*?)^(?=\\S)`, 'm').exec(text)?.[1] ?? ''
  const listed = (name: string, heads: string[]): void => {
    const lines = section(name).split('\n')
    for (const head of heads)
      t.ok(
        lines.some((line) => new RegExp(`^ +(-\\w, )?${head}( |$)`).test(line)),
        `${name}: ${head}`,
      )
  }
  listed('COMMANDS', [
    ...commands.map(({ name }) => name),
    ...commands.flatMap(({ options = {} }) => Object.keys(options).map((option) => `--${option}`)),
  ])
  for (const alias of commands.flatMap(({ aliases = [] }) => aliases))
    t.match(section('COMMANDS'), `Short form: ${alias}.`)
  listed(
    'OPTIONS OF COMMANDS FOR VIRTUAL MACHINES',
    Object.keys(clientOptions).map((name) => `--${name}`),
  )
  listed(
    'OPTIONS OF ALL COMMANDS',
    Object.keys(commonOptions).map((name) => `--${name}`),
  )
  listed('EXIT STATUS', Object.values(exitStatus).map(String))
  listed('ENVIRONMENT', Object.keys(environmentVariables))
  listed('FILES', [configurationFile, ...Object.keys(configurationKeys)])
  for (const { name } of commands) t.match(section('EXAMPLES'), `bhyve-checkpoint ${name}`)
  t.notMatch(section('NO SUCH SECTION'), /./)
  t.end()
})

t.test('the package installs the page', (t) => {
  const { man, files } = JSON.parse(fs.readFileSync(`${root}package.json`, 'utf8')) as {
    man: string[]
    files: string[]
  }
  t.same(man, ['man/bhyve-checkpoint.8'])
  t.ok(files.includes('man/bhyve-checkpoint.8'))
  t.end()
})
