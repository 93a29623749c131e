/** Formats tables. Columns are aligned for names in any script. */
import { eastAsianWidth } from 'get-east-asian-width'
import { visible } from '../base/visible_text.js'

/** Created on first use: this takes longer than to print a table, and most texts do not need it. */
let segmenter: Intl.Segmenter | undefined
const gap = '  '
/** A column of wrapped text that is narrower than this cannot be read. */
const leastText = 24

/** The width of a text in terminal columns. */
export function widthOf(text: string): number {
  if (isAscii(text)) return text.length
  let width = 0
  for (const { segment } of segments(text)) width += eastAsianWidth(segment.codePointAt(0) ?? 0)
  return width
}

/** The beginning of a text that fits into this many terminal columns. */
export function beginningOf(text: string, columns: number): string {
  if (isAscii(text)) return text.slice(0, Math.max(0, columns))
  let width = 0
  for (const { segment, index } of segments(text)) {
    width += eastAsianWidth(segment.codePointAt(0) ?? 0)
    if (width > columns) return text.slice(0, index)
  }
  return text
}

/** Every character is one column wide. */
function isAscii(text: string): boolean {
  return /^[ -~]*$/.test(text)
}

function segments(text: string): Intl.Segments {
  segmenter ??= new Intl.Segmenter()
  return segmenter.segment(text)
}

/** Breaks a text at its blanks. A longer word, such as a path, stays in one piece so that it can be copied. */
function wrapped(text: string, columns: number): string[] {
  const lines: string[] = []
  let line = ''
  for (const word of text.split(' ')) {
    const longer = line === '' ? word : `${line} ${word}`
    if (line !== '' && widthOf(longer) > columns) {
      lines.push(line)
      line = word
    } else line = longer
  }
  return [...lines, line]
}

export interface Column {
  title: string
  /** Aligns the column to the right, for numbers. */
  right?: boolean
  /** Colors a cell. Must not change its width. */
  paint?: (cell: string) => string
  /** Left out if the table is too wide for the terminal. The column with the lowest number is left out first. */
  optional?: number
  /** Only for the last column: its text can continue on the next line. */
  wraps?: boolean
}

type Rows = readonly (readonly string[])[]

/** What a table needs of the output. */
interface Painter {
  width: number | undefined
  paint(kind: 'title', text: string): string
}

/** The lines of a table for this output. `below`: a text that follows the row of the same number. */
export function tableLines(
  columns: readonly Column[],
  rows: Rows,
  output: Painter,
  below: readonly (string | undefined)[] = [],
): string[] {
  const { width = Infinity } = output
  const [titles = [], ...blocks] = table(columns, rows, width)
  const lines = blocks.flatMap((block, index) => {
    const text = below[index]
    const more = text === undefined ? [] : wrapped(text, width - gap.length).map((line) => gap + line)
    const isSeparate = titles.length === 0 && index + 1 < blocks.length
    return [...block, ...more, ...(isSeparate ? [''] : [])]
  })
  return [...titles.map((title) => output.paint('title', title)), ...lines]
}

/**
 * The lines of the titles, followed by the lines of each row. If the rows do not fit into `width` columns even without
 * the optional columns, each row becomes a list of its cells, and there are no lines of titles. Does not truncate: users
 * need the full name. Cells are escaped before they are measured.
 */
function table(columns: readonly Column[], rows: Rows, width: number): string[][] {
  const shown = rows.map((row) => row.map(visible))
  const kept = fitting(columns, shown, width)
  if (kept === undefined) return [[], ...shown.map((row) => record(columns, row, width))]
  const visibleColumns = columns.filter((column) => kept.includes(column))
  const only = (row: readonly string[]): string[] => row.filter((_, index) => kept.includes(columns[index]))
  return aligned(visibleColumns, shown.map(only), width)
}

/** The columns that fit. Undefined if even the required ones do not. */
function fitting(
  columns: readonly Column[],
  rows: Rows,
  width: number,
): readonly (Column | undefined)[] | undefined {
  const widths = widthsOf(columns, rows)
  let kept = columns.map((column, index) => ({ column, width: widths[index] ?? 0 }))
  for (;;) {
    const least = kept.map(({ column, width: full }) =>
      column.wraps === true ? Math.min(full, leastText) : full,
    )
    if (sumOf(least) <= width) return kept.map(({ column }) => column)
    const [first] = kept
      .flatMap(({ column: { optional } }) => (optional === undefined ? [] : [optional]))
      .sort((one, other) => one - other)
    if (first === undefined) return undefined
    kept = kept.filter(({ column }) => column.optional !== first)
  }
}

function widthsOf(columns: readonly Column[], rows: Rows): number[] {
  return columns.map(({ title }, index) =>
    Math.max(widthOf(title), ...rows.map((row) => widthOf(row[index] ?? ''))),
  )
}

function sumOf(widths: readonly number[]): number {
  return widths.reduce((sum, width) => sum + width, gap.length * (widths.length - 1))
}

function aligned(columns: readonly Column[], rows: Rows, width: number): string[][] {
  const widths = widthsOf(columns, rows)
  const indent = sumOf(widths.slice(0, -1)) + gap.length
  const titles = columns.map(({ title }) => title)
  return [titles, ...rows].map((row, index) => {
    const last = row.at(-1) ?? ''
    const texts = columns.at(-1)?.wraps === true ? wrapped(last, width - indent) : [last]
    const cells = [...row.slice(0, -1), texts[0] ?? '']
    const first = cells.map((cell, column) =>
      padded(cell, widths[column] ?? 0, { ...columns[column], isTitle: index === 0 }),
    )
    const others = texts.slice(1).map((text) => ' '.repeat(indent) + text)
    return [first.join(gap).trimEnd(), ...others]
  })
}

function padded(
  cell: string,
  width: number,
  { right = false, paint = unpainted, isTitle }: Partial<Column> & { isTitle: boolean },
): string {
  const padding = ' '.repeat(Math.max(0, width - widthOf(cell)))
  const painted = isTitle ? cell : paint(cell)
  return right ? padding + painted : painted + padding
}

/** One line for each cell, below each other. */
function record(columns: readonly Column[], row: readonly string[], width: number): string[] {
  const titleWidth = Math.max(...columns.map(({ title }) => widthOf(title)))
  const indent = titleWidth + gap.length
  return columns.flatMap(({ title, paint = unpainted, wraps = false }, index) => {
    const cell = row[index] ?? ''
    if (cell === '') return []
    const [first = '', ...others] = wraps ? wrapped(cell, width - indent) : [cell]
    return [title.padEnd(titleWidth) + gap + paint(first), ...others.map((text) => ' '.repeat(indent) + text)]
  })
}

function unpainted(cell: string): string {
  return cell
}
