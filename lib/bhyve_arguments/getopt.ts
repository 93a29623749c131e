/**
 * Splits a command line into options as getopt(3) does. The option string of bhyve differs between releases
 * (`bhyverun.c`, since 15 `amd64/bhyverun_machdep.c`). This file accepts the options of all releases, because bhyve
 * itself checks them again. The meaning of the options is handled elsewhere.
 */

export interface Option {
  letter: string
  /** Empty for a flag. */
  value: string
  /** The word that contains the value, and the offset of the value in it. */
  word: number
  offset: number
}

interface Words {
  options: Option[]
  /** The words after the options. */
  operands: string[]
  /** The index at which another option can be inserted. */
  insertAt: number
  /** Why getopt() would report an error. */
  fault?: string
}

const flags = 'aAbCDeHhIMPSuWwxY'
const withValue = 'cfgGkKlmnoprsU'

/** FreeBSD's getopt() stops at the first word that is not an option. A lone `-` is not an option, `--` is skipped. */
export function splitWords(args: readonly string[]): Words {
  const options: Option[] = []
  for (let index = 0; index < args.length;) {
    const word = args[index] ?? ''
    if (word === '--') return { options, operands: args.slice(index + 1), insertAt: index }
    if (!word.startsWith('-') || word === '-')
      return { options, operands: args.slice(index), insertAt: index }
    const parsed = parseWord(index, word, args[index + 1])
    options.push(...parsed.options)
    if (parsed.fault !== undefined)
      return { options, operands: [], insertAt: args.length, fault: parsed.fault }
    index += parsed.consumed
  }
  return { options, operands: [], insertAt: args.length }
}

/** `-AHm1G`: flags, then at most one option with a value. The value is the rest of the word, or else the next word. */
function parseWord(
  index: number,
  word: string,
  next: string | undefined,
): { options: Option[]; consumed: number; fault?: string } {
  const options: Option[] = []
  for (let at = 1; at < word.length; at++) {
    const letter = word.charAt(at)
    if (flags.includes(letter)) {
      options.push({ letter, value: '', word: index, offset: word.length })
      continue
    }
    if (!withValue.includes(letter)) return { options, consumed: 1, fault: `bhyve has no option -${letter}` }
    const rest = word.slice(at + 1)
    if (rest !== '') {
      const option = { letter, value: rest, word: index, offset: at + 1 }
      return { options: [...options, option], consumed: 1 }
    }
    if (next === undefined) return { options, consumed: 1, fault: `option -${letter} has no value` }
    return { options: [...options, { letter, value: next, word: index + 1, offset: 0 }], consumed: 2 }
  }
  return { options, consumed: 1 }
}
