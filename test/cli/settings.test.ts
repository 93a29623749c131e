/** The settings of the command line: option, environment, configuration file, default. */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { Values } from '../../dist/cli/command.js'
import { readSettings, type Settings } from '../../dist/cli/settings.js'
import { scratch } from '../support/index.js'

const isRoot = process.geteuid?.() === 0

function written(t: Test, text: string | Buffer, mode = 0o644): string {
  const file = path.join(scratch(t), 'test.conf')
  fs.writeFileSync(file, text)
  fs.chmodSync(file, mode)
  return file
}

interface Given {
  options?: Record<string, string>
  environment?: Record<string, string>
  file?: string
}

function settings({ options = {}, environment = {}, file = '/nonexistent/test.conf' }: Given): Settings {
  return readSettings(new Values(options), { environment, file })
}

/** The value and the origin of a setting. */
function inForce(given: Given, key: string): string[] {
  const found = settings(given).list.find((one) => one.key === key)
  return [found?.value ?? '', found?.from ?? '']
}

t.test('an option precedes the environment, then come the file and the default', async (t) => {
  const file = written(
    t,
    '# directories\n\nrun_directory=/file/run\n  cbsd_workdir  =  /file/jails # CBSD\r\n',
  )
  const environment = { BHYVE_RUN_DIRECTORY: '/environment/run/', BHYVE_CHECKPOINT_DIRECTORY: '' }
  const options = { 'run-directory': 'option/run' }
  const run = 'run_directory'
  t.strictSame(inForce({ file, environment, options }, run), [path.resolve('option/run'), '--run-directory'])
  t.strictSame(inForce({ file, environment }, run), ['/environment/run/', 'BHYVE_RUN_DIRECTORY'])
  t.strictSame(inForce({ file }, run), ['/file/run', `${file}:3`])
  t.strictSame(inForce({}, run), ['/var/run/bhyve', 'default'])
  t.strictSame(inForce({ file }, 'cbsd_workdir'), ['/file/jails', `${file}:4`])
  t.strictSame(
    inForce({ file, environment }, 'checkpoint_directory'),
    ['/var/db/bhyve-checkpoint', 'default'],
    'an empty variable is as none',
  )
  t.strictSame(inForce({ file }, 'config'), [file, 'default'])
  t.strictSame(inForce({ options: { config: file } }, 'config'), [file, '--config'])
  t.strictSame(inForce({ file: `${file}.none` }, 'config'), [`${file}.none`, 'default, does not exist'])
})

t.test('the memory stage can be turned off for one command or one program', async (t) => {
  const key = 'memory_stage'
  const file = written(t, 'memory_stage = /file/memory\n')
  const environment = { BHYVE_MEMORY_STAGE: '/environment/memory/../stage' }
  const options = { 'memory-stage': 'memory' }
  const used = (given: Given): string | undefined => settings(given).values.text('memory-stage')
  t.strictSame(inForce({ file, environment, options }, key), [path.resolve('memory'), '--memory-stage'])
  t.strictSame(inForce({ file, environment }, key), ['/environment/stage', 'BHYVE_MEMORY_STAGE'])
  t.strictSame(inForce({ file }, key), ['/file/memory', `${file}:1`])
  t.equal(used({ file }), '/file/memory')
  t.strictSame(inForce({}, key), ['none', 'default'])
  t.equal(used({}), undefined)
  const off = { BHYVE_MEMORY_STAGE: 'none' }
  t.strictSame(inForce({ file, environment: off }, key), ['none', 'BHYVE_MEMORY_STAGE'])
  t.strictSame(inForce({ file, environment, options: { 'memory-stage': 'none' } }, key), [
    'none',
    '--memory-stage',
  ])
  t.strictSame(inForce({ environment: off, options }, key), [path.resolve('memory'), '--memory-stage'])
  t.equal(inForce({ options: { 'memory-stage': './none' } }, key)[0], path.resolve('none'), 'a directory')
  t.strictSame(inForce({ file: written(t, 'memory_stage = none\n') }, key)[0], 'none')
  const wrong = 'BHYVE_MEMORY_STAGE must be an absolute path or none: "memory"'
  t.equal(thrown({ environment: { BHYVE_MEMORY_STAGE: 'memory' } }), wrong)
})

t.test('only the memory stage can be none', async (t) => {
  const environment = { BHYVE_RUN_DIRECTORY: 'none' }
  t.equal(thrown({ environment }), 'BHYVE_RUN_DIRECTORY must be an absolute path: "none"')
})

t.test('--cbsd precedes a checkpoint directory that is not an option', async (t) => {
  const environment = { BHYVE_CHECKPOINT_DIRECTORY: '/checkpoints', cbsd_workdir: '/jails' }
  const { values, list } = settings({ environment, options: { cbsd: '' } })
  t.equal(values.text('cbsd'), '/jails')
  t.equal(values.text('checkpoint-directory'), undefined)
  t.match(list, [{}, { value: '/jails/jails-system/<vm>/checkpoints', from: '--cbsd' }, {}, {}, {}])
  t.equal(settings({ environment, options: { cbsd: '/other' } }).values.text('cbsd'), '/other')
  const without = settings({ environment }).values
  t.equal(without.text('cbsd'), undefined, 'the work directory alone does not choose the layout of CBSD')
  t.equal(without.text('checkpoint-directory'), '/checkpoints')
})

t.test('a wrong line is an error that names file and line', async (t) => {
  for (const [text, message] of [
    ['run_directory\n', "A line must be 'key = value' or a comment"],
    ['= /x\n', "A line must be 'key = value' or a comment"],
    ['run-directory = /x\n', 'Unknown key "run-directory". The keys are run_directory, '],
    ['constructor = /x\n', 'Unknown key "constructor"'],
    ['run_directory = x\n', 'run_directory must be an absolute path: "x"'],
    ['run_directory =\n', 'run_directory must be an absolute path: ""'],
    ['cbsd_workdir="/usr/jails"\n', 'cbsd_workdir must be an absolute path: "\\"/usr/jails\\""'],
    ['run_directory = /x\u0000y\n', 'run_directory must be an absolute path: "/x\\u0000y"'],
    ['run_directory = /x\nrun_directory = /y\n', "The key 'run_directory' is given twice"],
  ] as const) {
    const file = written(t, `\n${text}`)
    const line = text.includes('/y') && !text.includes('\u0000') ? 3 : 2
    const error = thrown({ file })
    t.ok(error.startsWith(`${file}:${line}: ${message}`), error)
  }
  t.equal(
    thrown({ environment: { cbsd_workdir: 'jails' } }),
    'cbsd_workdir must be an absolute path: "jails"',
  )
})

t.test('a file that cannot be trusted or read is an error', async (t) => {
  const text = 'run_directory = /x\n'
  const missing = path.join(scratch(t), 'none')
  t.match(thrown({ options: { config: missing } }), /^The configuration file '.*none' does not exist$/)
  t.match(thrown({ file: scratch(t) }), /is not a regular file$/)
  t.match(thrown({ file: written(t, Buffer.from([0x23, 0xff])) }), /is not UTF-8$/)
  t.match(thrown({ file: written(t, '#'.repeat(65_537)) }), /is larger than 65536 bytes$/)
  t.strictSame(inForce({ file: written(t, '#'.repeat(65_536)) }, 'run_directory')[1], 'default')
  const link = `${written(t, text)}.link`
  fs.symlinkSync('test.conf', link)
  t.match(thrown({ file: link }), /symbolic link/)
})

t.test('as root, a file that others can write is refused', { skip: !isRoot && 'needs root' }, async (t) => {
  const text = 'run_directory = /x\n'
  for (const mode of [0o664, 0o646, 0o666]) t.match(thrown({ file: written(t, text, mode) }), /go-w/)
  const foreign = written(t, text)
  fs.chownSync(foreign, 65534, 0)
  t.match(thrown({ file: foreign }), /is not used, because users other than root can change it/)
  t.equal(inForce({ file: written(t, text, 0o644) }, 'run_directory')[0], '/x')
})

function thrown(given: Given): string {
  try {
    settings(given)
  } catch (error) {
    return (error as Error).message
  }
  return 'nothing was thrown'
}

t.test('a FIFO does not block', { skip: process.platform === 'win32' && 'no FIFOs' }, async (t) => {
  const file = path.join(scratch(t), 'fifo')
  t.equal(spawnSync('mkfifo', [file]).status, 0)
  t.match(thrown({ file }), /is not a regular file$/)
})
