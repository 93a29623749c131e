/** Messages of the library name its options and functions. The command line prints its own names instead. */
import t from 'tap'
import { collectMessages } from '../support/messages.js'
import { commands } from '../../dist/cli/commands/all_commands.js'
import { flagOf, withFlags } from '../../dist/cli/flags.js'
import { optionsOf } from '../../dist/cli/parse.js'

/** What only a program can cause: options that the command line always passes with valid values, or never. */
const onlyPrograms = [
  /[Tt]he option '(?:args|checkpointDirectory|connect|depth|devices|diskProviders|host|memoryStage\.maxBytes|onFrozen|onProgress|processes|runs|signal|since|vms|zeroLayout)' (?:must|cannot|has)/,
  /'onFrozen' need a process of its own/,
  /The layout's 'directoryOf' returned/,
]

/** The text without the values that the source inserts, and without paths. */
function plain(text: string): string {
  const inner = text.replace(/<[^<>]*>/g, '')
  return inner === text ? text.replace(/'[^' ]*\/[^' ]*'/g, '') : plain(inner)
}

const texts = [...collectMessages()].flatMap(([file, messages]) =>
  messages.map(({ text }) => ({ file, text })),
)
/** The simulated bhyve prints what bhyve does. The pool has a program as a text. */
const ours = texts.filter(
  ({ file, text }) => !file.startsWith('lib/simulator/') && !text.includes("require('node:"),
)

t.test('no message of the command line has a name in camelCase', (t) => {
  let count = 0
  for (const { file, text } of ours) {
    if (onlyPrograms.some((pattern) => pattern.test(text))) continue
    count++
    const names = plain(withFlags(text)).match(/\b[a-z]+[A-Z][A-Za-z]*/g) ?? []
    t.same(
      names.filter((name) => !/^vCPUs?$/.test(name)),
      [],
      `${file}: ${text}`,
    )
  }
  t.ok(count > 800, `${String(count)} texts`)
  t.end()
})

t.test('every option in a message exists', (t) => {
  const flags = new Set(commands.flatMap((one) => Object.keys(optionsOf(one)).map((name) => `--${name}`)))
  const named = ours
    .filter(({ text }) => !onlyPrograms.some((pattern) => pattern.test(text)))
    .flatMap(({ text }) => {
      const names = [...plain(text).matchAll(/[Tt]he option '([a-zA-Z]+)'/g)].map(([, name = '']) => name)
      // Some advice is replaced as a sentence.
      return names.filter((name) => withFlags(text).includes(flagOf(name)))
    })
  t.ok(named.length > 20)
  for (const name of new Set(named)) t.ok(flags.has(flagOf(name)), name)
  t.equal(withFlags("the option 'ifExists' must"), '--keep-existing must')
  t.equal(
    withFlags("call (for example listCheckpoints, or 'bhyve-checkpoint list') finishes it"),
    "call (for example 'bhyve-checkpoint list') finishes it",
  )
  t.equal(
    withFlags("Check with listVirtualMachines (or 'bhyve-checkpoint vms') whether"),
    "Check with 'bhyve-checkpoint vms' whether",
  )
  t.end()
})
