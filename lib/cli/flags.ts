/** Library messages name options of the library. Here they get the names that the command line uses. */

/** Options whose flag is not simply their name in kebab case. */
const others: ReadonlyMap<string, string> = new Map([
  ['trustedUids', 'trusted-uid'],
  ['memoryBytes', 'memory'],
  ['workdir', 'cbsd'],
])

/** The flag of a library option: `--run-directory` for `runDirectory`. */
export function flagOf(option: string): string {
  const derived = option.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
  return `--${others.get(option) ?? derived}`
}

/** `the option 'dialect' as 'descriptor'` becomes `--dialect descriptor`, and `the option 'again'` becomes `--again`. */
export function withFlags(text: string): string {
  return text.replace(
    /\b[Tt]he option '([A-Za-z]+)'(?: as '([^']*)')?/g,
    (_, option: string, value?: string) => flagOf(option) + (value === undefined ? '' : ` ${value}`),
  )
}
