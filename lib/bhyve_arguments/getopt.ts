/**
 * A command line cut into options as getopt(3) does it. bhyve's option string differs from release to release
 * (`bhyverun.c`, since 15 `amd64/bhyverun_machdep.c`): what any of them takes is taken here, bhyve itself has the
 * last word. Knows nothing of what the options mean.
 */

export interface Option {
  letter: string
  /** Empty for a flag. */
  value: string
}

interface Words {
  options: Option[]
  /** What follows the options. */
  operands: string[]
  /** Index of the word before which one more option may be put. */
  insertAt: number
  /** Where getopt() would have given up. */
  fault?: string
}

const flags = 'aAbCDeHhIMPSuWwxY'
const withValue = 'cfgGkKlmnoprsU'

/** FreeBSD's getopt() ends at the first word that is no option; a lone `-` is none, `--` is left out. */
export function splitWords(args: readonly string[]): Words {
  const options: Option[] = []
  for (let index = 0; index < args.length;) {
    const word = args[index] ?? ''
    if (word === '--') return { options, operands: args.slice(index + 1), insertAt: index }
    if (!word.startsWith('-') || word === '-')
      return { options, operands: args.slice(index), insertAt: index }
    const cut = cutWord(word, args[index + 1])
    options.push(...cut.options)
    if (cut.fault !== undefined) return { options, operands: [], insertAt: args.length, fault: cut.fault }
    index += cut.words
  }
  return { options, operands: [], insertAt: args.length }
}

/** `-AHm1G`: flags, then at most one option whose value is the rest of the word, or else the next one. */
function cutWord(
  word: string,
  next: string | undefined,
): { options: Option[]; words: number; fault?: string } {
  const options: Option[] = []
  for (let at = 1; at < word.length; at++) {
    const letter = word.charAt(at)
    if (flags.includes(letter)) {
      options.push({ letter, value: '' })
      continue
    }
    if (!withValue.includes(letter)) return { options, words: 1, fault: `bhyve has no option -${letter}` }
    const rest = word.slice(at + 1)
    if (rest !== '') return { options: [...options, { letter, value: rest }], words: 1 }
    if (next === undefined) return { options, words: 1, fault: `option -${letter} has no value` }
    return { options: [...options, { letter, value: next }], words: 2 }
  }
  return { options, words: 1 }
}
