/** Columns that stand below each other, whatever script the names are in. */
import { eastAsianWidth } from 'get-east-asian-width'
import { visible } from '../base/visible_text.js'

const segmenter = new Intl.Segmenter()
const gap = '  '

/** How many columns of a terminal a text takes. */
function widthOf(text: string): number {
  let width = 0
  for (const { segment } of segmenter.segment(text)) width += eastAsianWidth(segment.codePointAt(0) ?? 0)
  return width
}

export interface Column {
  title: string
  /** Numbers. */
  right?: boolean
  /** What a cell looks like on a terminal, without a change of its width. */
  paint?: (cell: string) => string
}

/** Nothing is cut off: a name that cannot be read in full cannot be used. Escaped before it is measured. */
export function table(columns: readonly Column[], rows: readonly (readonly string[])[]): string[] {
  const lines = [columns.map(({ title }) => title), ...rows.map((row) => row.map(visible))]
  const widths = columns.map((_, index) => Math.max(...lines.map((line) => widthOf(line[index] ?? ''))))
  return lines.map((line, row) =>
    line
      .map((cell, index) => {
        const { right = false, paint = asItIs } = columns[index] ?? {}
        const padding = ' '.repeat((widths[index] ?? 0) - widthOf(cell))
        const painted = row === 0 ? cell : paint(cell)
        return right ? padding + painted : painted + padding
      })
      .join(gap)
      .trimEnd(),
  )
}

function asItIs(cell: string): string {
  return cell
}
