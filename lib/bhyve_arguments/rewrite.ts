/**
 * Rewrites bhyve's arguments for another VM that runs on copies of the disks. The rewriting is textual, so that options
 * which this library does not parse are rewritten, too. The caller must parse the result and verify it (`fork.ts`).
 */
import { type Option, splitWords } from './getopt.js'

export interface Rewriting {
  /** From each path to the path of its copy. The paths below it are rewritten, too. */
  paths: ReadonlyMap<string, string>
  /** The VM name that the result has. */
  as: string
}

export function rewriteArguments(args: readonly string[], { paths, as }: Rewriting): string[] {
  const { options, operands, insertAt } = splitWords(args)
  const words = [...args]
  const replace = pathReplacer(paths)
  for (const option of options.filter(mayNameDisk)) {
    const start = (words[option.word] ?? '').slice(0, option.offset)
    words[option.word] = start + replace(option.value)
  }
  const before = words.slice(0, words.length - operands.length)
  // Without `--`, such a name would be an option.
  if (as.startsWith('-') && before[insertAt] !== '--') before.splice(insertAt, 0, '--')
  return [...before, as, ...operands.slice(1)]
}

/** bhyve only reads the configuration file of `-k`, so both VMs can use the same one. */
function mayNameDisk({ letter, value }: Option): boolean {
  return letter !== 'k' && value !== ''
}

/**
 * Returns a function that replaces each path in a value. A path begins where a value of bhyve begins: after `,`, `:` or
 * `=`. It ends at a slash, at a comma or at the end of the value.
 */
export function pathReplacer(paths: ReadonlyMap<string, string>): (value: string) => string {
  const known = new Map([...paths].map(([from, to]) => [trimmed(from), trimmed(to)]))
  known.delete('')
  if (known.size === 0) return (value) => value
  const longestFirst = [...known.keys()].sort((one, other) => other.length - one.length)
  const anyPath = longestFirst.map((one) => one.replace(/[.*+?^${}()|[\]\\]/g, String.raw`\$&`)).join('|')
  const pattern = new RegExp(`(?<![^,:=])(?:${anyPath})(?=[/,]|$)`, 'g')
  return (value) => value.replace(pattern, (found) => known.get(found) ?? found)
}

function trimmed(path: string): string {
  return path.replace(/\/+$/, '')
}
