/**
 * The secrets in bhyve's arguments: the password of a frame buffer (`-s 29,fbuf,password=...`, or
 * `-o pci.0.29.0.password=...`), and the text of `-f name,string=...`. It is better to hide too much than too little:
 * `password=` counts as a secret of any emulation.
 */
import { type Option, splitWords } from './getopt.js'

const mask = '***'

type Replace = (secret: string) => string

/** The arguments with `***` instead of each secret. */
export function maskedArguments(args: readonly string[]): string[] {
  return replacedIn(args, () => mask)
}

/** The indexes of the arguments that contain secrets. */
export function secretsIn(args: readonly string[]): number[] {
  return maskedArguments(args).flatMap((word, index) => (word === args[index] ? [] : [index]))
}

/** A message about these arguments, with `***` instead of each secret. */
export function withoutSecrets(message: string, args: readonly string[]): string {
  const secrets = new Set<string>()
  replacedIn(args, (secret) => {
    secrets.add(secret)
    return mask
  })
  const longestFirst = [...secrets].sort((one, other) => other.length - one.length)
  return longestFirst.reduce((text, secret) => text.replaceAll(`=${secret}`, `=${mask}`), message)
}

function replacedIn(args: readonly string[], replace: Replace): string[] {
  const { options } = splitWords(args)
  const variables = secretVariables(options)
  const byWord = new Map(options.map((option) => [option.word, option]))
  return args.map((word, index) => {
    const option = byWord.get(index)
    // Nothing is known about the words after a mistake.
    if (option === undefined) return replaced(word, /(?<=password=).+$/s, replace)
    return word.slice(0, option.offset) + replacedInOption(option, variables, replace)
  })
}

function replacedInOption(
  { letter, value }: Option,
  variables: ReadonlySet<string>,
  replace: Replace,
): string {
  if (letter === 'f') return replaced(value, /(?<=(?:^|,)string=).+$/s, replace)
  if (letter !== 'o') return replaced(value, /(?<=(?:^|,)password=)[^,]+/g, replace)
  const [name = ''] = value.split('=', 1)
  const isSecret = /(?:^|\.)password$/.test(name) || variables.has(name)
  return isSecret ? replaced(value, /(?<==).+$/s, replace) : value
}

function replaced(text: string, secret: RegExp, replace: Replace): string {
  return text.replace(secret, (found) => replace(found))
}

/** The variables that a secret refers to by `%(name)`, directly or by other variables. */
function secretVariables(options: readonly Option[]): Set<string> {
  const variables = new Set<string>()
  const addReferences: Replace = (secret) => {
    for (const [, name = ''] of secret.matchAll(/%\(([^)]*)\)/g)) variables.add(name)
    return mask
  }
  for (let size = -1; size !== variables.size;) {
    size = variables.size
    for (const option of options) replacedInOption(option, variables, addReferences)
  }
  return variables
}
