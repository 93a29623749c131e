/** The help texts. test/fixtures/cli/help.*.txt has all of them. */
import t from 'tap'
import { commandOf, commands } from '../../dist/cli/commands/all_commands.js'
import { helpOn, overview } from '../../dist/cli/help.js'
import { optionsOf } from '../../dist/cli/parse.js'

t.test('every line of every help has at most 80 columns', (t) => {
  for (const line of [...overview(), ...commands.flatMap(helpOn)]) t.ok(line.length <= 80, line)
  t.end()
})

t.test('the help lists every command, alias and option', (t) => {
  const all = overview().join('\n')
  for (const command of commands) {
    for (const word of [command.name, ...(command.aliases ?? [])]) {
      t.match(all, new RegExp(`^ {2}(?:\\w+, )?${word}\\b`, 'm'))
      t.equal(commandOf(word), command)
    }
    const help = helpOn(command).join('\n')
    for (const [name, { short }] of Object.entries(optionsOf(command)))
      t.match(help, new RegExp(`^ {2}${short === undefined ? '' : `-${short}, `}--${name}\\b`, 'm'))
  }
  t.end()
})

t.test('words and letters are unique', (t) => {
  const words = commands.flatMap(({ name, aliases = [] }) => [name, ...aliases])
  t.equal(new Set(words).size, words.length)
  for (const command of commands) {
    const letters = Object.values(optionsOf(command)).flatMap(({ short = [] }) => short)
    t.equal(new Set(letters).size, letters.length, command.name)
  }
  t.end()
})

t.test('a long example can be pasted', (t) => {
  const long = commands.filter(({ example }) => example.length > 78)
  t.ok(long.length > 0)
  for (const command of long) {
    const lines = helpOn(command)
    const example = lines.slice(lines.indexOf('example:') + 1).join('\n')
    t.equal(example.replaceAll(/ \\\n +/g, ' ').trim(), command.example)
  }
  t.end()
})
