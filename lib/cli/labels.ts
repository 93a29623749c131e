/** Labels on the command line: `key=value`, and `key-` to remove one. The library checks the keys and values. */
import { UsageError } from './usage_error.js'

/** The longest text of labels in the table of `list`, in characters. */
const maxNoteLength = 60

export function parseLabels(words: readonly string[]): Record<string, string> {
  return once(words.map(assignment))
}

export function parseChanges(words: readonly string[]): Record<string, string | null> {
  const removal = (word: string): [string, null] => [word.slice(0, -1), null]
  const isRemoval = (word: string): boolean => !word.includes('=') && word.endsWith('-')
  return once(words.map((word) => (isRemoval(word) ? removal(word) : assignment(word))))
}

/** A key that is given twice is a mistake: `prune` would apply to other checkpoints than expected. */
function once<T>(entries: readonly (readonly [string, T])[]): Record<string, T> {
  const labels = Object.fromEntries(entries)
  const twice = entries.find(([key], index) => entries.findIndex(([other]) => other === key) !== index)
  if (twice !== undefined) throw new UsageError(`The label '${twice[0]}' is given twice`)
  return labels
}

function assignment(word: string): [string, string] {
  const at = word.indexOf('=')
  if (at === -1) throw new UsageError(`A label must be given as key=value, not '${word}'`)
  return [word.slice(0, at), word.slice(at + 1)]
}

/** `key=value` of each label. */
export function labelTexts(labels: Readonly<Record<string, string>> = {}): string[] {
  return Object.entries(labels).map(([key, value]) => `${key}=${value}`)
}

/** For a column of a table: the labels, or only their number if they are long. */
export function labelNote(labels: Readonly<Record<string, string>> | undefined): string {
  const texts = labelTexts(labels)
  const note = texts.join(', ')
  return note.length <= maxNoteLength ? note : `${String(texts.length)} label${texts.length === 1 ? '' : 's'}`
}
