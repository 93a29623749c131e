/** The arguments of CBSD's commands. */
import t from 'tap'
import { jnameKey, parseArguments } from '../../dist/cli/cbsd/arguments.js'

const keys = { jname: jnameKey, name: { help: '' }, poweroff: { help: '', values: ['0', '1'] } }
const parse = (...words: string[]): ReturnType<typeof parseArguments> => parseArguments(words, keys)

t.test('key=value arguments are read in any order', async (t) => {
  const { given, config, help } = parse('name=a=b', '--config', 'file', 'jname=vm1 web*', 'poweroff=1')
  t.strictSame(
    [...given],
    [
      ['name', 'a=b'],
      ['jname', 'vm1 web*'],
      ['poweroff', '1'],
    ],
  )
  t.equal(config, 'file')
  t.equal(help, false)
})

t.test('help needs no arguments', async (t) => {
  for (const words of [['-h'], ['--help'], ['nane=x', '-h']]) t.equal(parse(...words).help, true)
})

t.test('everything else is an error', async (t) => {
  for (const [words, message] of [
    [['name=a'], "The argument 'jname=' is missing"],
    [['jname='], "'jname' must not be empty"],
    [['jname=a', 'jname=b'], "'jname' is given twice"],
    [['jname=a', 'nane=x'], "Unknown argument 'nane'. The arguments are jname, name, poweroff"],
    [['jname=a', '__proto__=x'], "Unknown argument '__proto__'"],
    [['freebsd1'], "key=value, as in jname=freebsd1, not 'freebsd1'"],
    [['=a'], "key=value, as in jname=freebsd1, not '=a'"],
    [['--jname', 'a'], 'The only options are --config <file> and --help'],
    [['jname=a', '--config'], 'The only options are'],
    [['jname=a', 'poweroff=yes'], "'poweroff' must be 0 or 1, not 'yes'"],
  ] as const)
    t.throws(() => parse(...words), { code: 'ERR_USAGE', message })
})
