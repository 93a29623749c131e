/** Labels of a checkpoint: keys and values of the caller. Checks them in options, and in records on disk. */
import { Buffer } from 'node:buffer'
import { invalid } from './assertions.js'
import { visible } from './visible_text.js'

export type Labels = Readonly<Record<string, string>>
/** A change of labels. Null removes the label. */
export type LabelChanges = Readonly<Record<string, string | null>>

const maxLabels = 64
const maxValueBytes = 256

/** Checks labels and returns a copy. Throws `ERR_INVALID_OPTION`. */
export function checkedLabels(labels: unknown = {}): Labels {
  const checked = checkedChanges(labels, (value) => value !== null)
  return assertCount(checked as Labels)
}

/** Checks changes of labels and returns a copy. Throws `ERR_INVALID_OPTION`. */
export function checkedChanges(
  changes: unknown,
  isAllowed: (value: unknown) => boolean = () => true,
): LabelChanges {
  // An array, a Map or a class of the caller has entries that are not its labels.
  if (Object.prototype.toString.call(changes) !== '[object Object]')
    throw invalid("The option 'labels' must be an object", changes)
  const entries = Object.entries(changes as object)
  for (const [key, value] of entries) {
    if (!isKey(key)) throw invalid(`A key in the option 'labels' must be ${keyRule}`, key)
    if (!isAllowed(value) || (value !== null && !isValue(value)))
      throw invalid(`The value of '${key}' in the option 'labels' must be ${valueRule}`, value)
  }
  return Object.fromEntries(entries)
}

/** The labels after the changes. Throws `ERR_INVALID_OPTION` if there are too many. */
export function changedLabels(labels: Labels, changes: LabelChanges): Labels {
  const entries = Object.entries({ ...labels, ...changes })
  return assertCount(
    Object.fromEntries(entries.filter((entry): entry is [string, string] => entry[1] !== null)),
  )
}

/** The labels in a record on disk, which may contain anything. Ignores what is not a label. */
export function labelsFrom(value: unknown): Labels {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return {}
  const valid = Object.entries(value).filter(([key, text]) => isKey(key) && isValue(text))
  return Object.fromEntries(valid.slice(0, maxLabels))
}

const keyRule = "1 to 63 characters of A-Z a-z 0-9 . _ / -, but not '__proto__'"
const valueRule = `text of at most ${String(maxValueBytes)} bytes without control or invisible characters`

/** `labels['__proto__'] = value` would not set a label. */
function isKey(key: string): boolean {
  return /^[A-Za-z0-9._/-]{1,63}$/.test(key) && key !== '__proto__'
}

function isValue(value: unknown): value is string {
  if (typeof value !== 'string' || Buffer.byteLength(value) > maxValueBytes) return false
  return !/[\p{Cc}\p{Surrogate}]/u.test(value) && visible(value) === value
}

function assertCount(labels: Labels): Labels {
  const count = Object.keys(labels).length
  if (count <= maxLabels) return labels
  throw invalid(`A checkpoint can have at most ${String(maxLabels)} labels in the option 'labels'`, count)
}
