/** The help texts, within 80 columns. */
import type { Command, OptionSpec } from './command.js'
import { commands } from './commands/all_commands.js'
import { clientOptions, commonOptions } from './parse.js'

export function overview(): string[] {
  return [
    'usage: bhyve-checkpoint <command> [options]',
    '',
    'Save, list, verify, restore and destroy checkpoints of bhyve virtual machines',
    '',
    ...commands.flatMap(({ name, aliases = [], summary }) =>
      entry([name, ...aliases].join(', '), summary, 15),
    ),
    '',
    "Run 'bhyve-checkpoint <command> --help' for the options of a command,",
    "or 'bhyve-checkpoint --version' for the version",
  ]
}

export function helpOn(command: Command): string[] {
  const { name, aliases = [], usage, summary, example, options = {}, standalone = false } = command
  return [
    `usage: bhyve-checkpoint ${name} ${usage}`.trimEnd(),
    '',
    ...wrapped(summary, 0),
    ...(aliases.length === 0 ? [] : [`Short form: ${aliases.join(', ')}`]),
    '',
    ...optionEntries(options),
    ...optionEntries(standalone ? {} : clientOptions),
    ...optionEntries(commonOptions),
    '',
    'example:',
    ...exampleLines(example),
  ]
}

function optionEntries(options: Readonly<Record<string, OptionSpec>>): string[] {
  return Object.entries(options).flatMap(([name, { value, short, help }]) => {
    const letter = short === undefined ? '' : `-${short}, `
    return entry(`${letter}--${name}${value === undefined ? '' : ` ${value}`}`, help, 31)
  })
}

/** A long command line is continued with a backslash, so that it can be pasted. */
function exampleLines(example: string): string[] {
  const lines = wrapped(example, 4).map((line) => line.trim())
  return lines.map(
    (line, index) => `${index === 0 ? '  ' : '    '}${line}${index + 1 < lines.length ? ' \\' : ''}`,
  )
}

export function entry(head: string, text: string, indent: number): string[] {
  const [first = '', ...others] = wrapped(text, indent)
  return [`  ${head}`.padEnd(indent) + first.trimStart(), ...others]
}

export function wrapped(text: string, indent: number): string[] {
  const lines: string[] = []
  let line = ' '.repeat(indent)
  for (const word of text.split(' ')) {
    const isFull = line.length + word.length > 79
    if (isFull) lines.push(line.trimEnd())
    line = `${isFull ? ' '.repeat(indent) : line}${word} `
  }
  return [...lines, line.trimEnd()]
}
