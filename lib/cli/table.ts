/** Formats tables. Columns are aligned for names in any script. */
import { eastAsianWidth } from 'get-east-asian-width'
import { visible } from '../base/visible_text.js'

const segmenter = new Intl.Segmenter()
const gap = '  '

/** The width of a text in terminal columns. */
function widthOf(text: string): number {
  let width = 0
  for (const { segment } of segmenter.segment(text)) width += eastAsianWidth(segment.codePointAt(0) ?? 0)
  return width
}

export interface Column {
  title: string
  /** Aligns the column to the right, for numbers. */
  right?: boolean
  /** Colors a cell. Must not change its width. */
  paint?: (cell: string) => string
}

/** Does not truncate: users need the full name. Cells are escaped before they are measured. */
export function table(columns: readonly Column[], rows: readonly (readonly string[])[]): string[] {
  const lines = [columns.map(({ title }) => title), ...rows.map((row) => row.map(visible))]
  const widths = columns.map((_, index) => Math.max(...lines.map((line) => widthOf(line[index] ?? ''))))
  return lines.map((line, row) =>
    line
      .map((cell, index) => {
        const { right = false, paint = unpainted } = columns[index] ?? {}
        const padding = ' '.repeat((widths[index] ?? 0) - widthOf(cell))
        const painted = row === 0 ? cell : paint(cell)
        return right ? padding + painted : painted + padding
      })
      .join(gap)
      .trimEnd(),
  )
}

function unpainted(cell: string): string {
  return cell
}
