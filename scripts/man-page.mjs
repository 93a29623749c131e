// `npm run docs:man` generates man/bhyve-checkpoint.8 from the tables of the command line and man/prose.mdoc. With
// `--check` it only fails if the page is out of date. Build first.
import fs from 'node:fs'
import { fileURLToPath } from 'node:url'
import { commands } from '../dist/cli/commands/all_commands.js'
import { configurationFile, configurationKeys, environmentVariables } from '../dist/cli/environment.js'
import { exitMeanings, exitStatus } from '../dist/cli/exit_status.js'
import { clientOptions, commonOptions } from '../dist/cli/parse.js'

const at = (name) => fileURLToPath(new URL(`../man/${name}`, import.meta.url))
const page = at('bhyve-checkpoint.8')
/** mandoc warns about longer lines. */
const columns = 78

/** What the prose inserts, by name: `@commands@` and so on on lines of their own. */
const parts = {
  synopsis: () =>
    commands.flatMap((one) => ['.Nm', `.Cm ${one.name}`, '.Op Ar options', ...usage(one.usage)]),
  commands: () => list(commands.map(commandItem)),
  clientOptions: () => optionList(clientOptions),
  commonOptions: () => optionList(commonOptions),
  environment: () =>
    list(Object.entries(environmentVariables).map(([name, text]) => [`.It Ev ${name}`, ...sentences(text)])),
  keys: () =>
    list(Object.entries(configurationKeys).map(([key, text]) => [`.It Cm ${key}`, ...sentences(text)])),
  configurationFile: () => [`.It Pa ${configurationFile}`],
  exitStatuses: () =>
    list(
      Object.entries(exitStatus).map(([name, status]) => [`.It ${status}`, ...sentences(exitMeanings[name])]),
    ),
  examples: () => ['.Bd -literal', ...commands.map(({ example }) => continued(example)).flat(), '.Ed'],
}

function commandItem({ name, aliases = [], usage: words, summary, options = {} }) {
  const own = Object.keys(options).length === 0 ? [] : optionList(options)
  const short = aliases.length === 0 ? [] : ['Short form:', `.Cm ${aliases.join(' , ')} .`]
  return [`.It Cm ${name}${inline(words)}`, ...sentences(summary), ...short, ...own]
}

/** `<vm> [name ...] -- <bhyve arguments>` as macros. */
function usage(words) {
  return [...words.matchAll(/\[([^\]]*)\]|<([^>]*)>|(\S+)/g)].map(([, optional, required, other]) => {
    if (optional !== undefined) return `.Op ${usageWords(optional)}`
    if (required !== undefined) return `.Ar ${required}`
    if (other.startsWith('--')) return `.Fl ${other.slice(1)}`
    // A bar alone would be a delimiter.
    return `.No ${other.replace('|', '\\(ba')}`
  })
}

/** The same in the arguments of a macro line, where `Op` would enclose all that follows. */
function inline(words) {
  return usage(words)
    .map((line) => ` ${line.slice(1).replace(/^Op (.*)/, 'Oo $1 Oc')}`)
    .join('')
}

function usageWords(text) {
  return text
    .replace(/^-- /, 'Fl \\- ')
    .replace(/<([^>]*)>/, 'Ar $1')
    .replace(/^(?!Fl)/, 'Ar ')
}

function optionList(options) {
  return list(
    Object.entries(options).map(([name, { short, value, help }]) => {
      const long = `Fl Fl ${name}${value === undefined ? '' : ` Ar ${quoted(value)}`}`
      return [`.It ${short === undefined ? '' : `Fl ${short} , `}${long}`, ...sentences(help)]
    }),
  )
}

/** A value with a bracket would be an argument of its own. */
function quoted(value) {
  return /^\[/.test(value) ? `\\&${value}` : value
}

function list(items) {
  return ['.Bl -tag -width Ds', ...items.flat(), '.El']
}

/** Each sentence begins on a line of its own. The texts of the tables have no full stop at their end. */
function sentences(text) {
  return `${text}.`.split(/(?<=\.) (?=\p{Lu})/u).flatMap(lines)
}

function lines(sentence) {
  const result = ['']
  for (const word of sentence.split(' ')) {
    const line = `${result.at(-1)} ${word}`.trim()
    if (escaped(line).length > columns) result.push(word)
    else result[result.length - 1] = line
  }
  return result.map(escaped)
}

/**
 * A line that begins with a full stop or an apostrophe would be a request, and mandoc warns about the name of the system,
 * whose macro takes only releases.
 */
function escaped(text) {
  return text
    .replaceAll('\\', '\\e')
    .replace(/^(?=[.'])/, '\\&')
    .replaceAll('e.g. ', 'e.g.\\& ')
    .replaceAll('FreeBSD', 'Free\\&BSD')
    .replaceAll('--', '\\-\\-')
}

/** A long command line, continued as in a shell. */
function continued(example) {
  const result = ['']
  for (const word of example.split(' ')) {
    if (`${result.at(-1)} ${word}`.length > 66) result.push(`    ${word}`)
    else result[result.length - 1] = `${result.at(-1)} ${word}`.replace(/^ (?! )/, '')
  }
  return result.map((line, index) => escaped(line + (index + 1 < result.length ? ' \\' : '')))
}

function generated() {
  const prose = fs.readFileSync(at('prose.mdoc'), 'utf8')
  return prose.replace(/^@(\w+)@$/gm, (_, name) => parts[name]().join('\n'))
}

const fresh = generated()
if (!process.argv.includes('--check')) fs.writeFileSync(page, fresh)
else if (fs.readFileSync(page, 'utf8') !== fresh) {
  console.error('man/bhyve-checkpoint.8 is out of date. Run npm run docs:man')
  process.exitCode = 1
}
