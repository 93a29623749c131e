/** Columns that stand below each other, whatever script the names are in. */
import { eastAsianWidth } from 'get-east-asian-width'
import { visible } from '../base/visible.js'

const segmenter = new Intl.Segmenter()
const gap = '  '

/** How many columns of a terminal a text takes. */
export function widthOf(text: string): number {
  let width = 0
  for (const { segment } of segmenter.segment(text)) width += eastAsianWidth(segment.codePointAt(0) ?? 0)
  return width
}

export interface Column {
  title: string
  /** Numbers. */
  right?: boolean
}

/** Nothing is cut off: a name that cannot be read in full cannot be used. Escaped before it is measured. */
export function table(columns: readonly Column[], rows: readonly (readonly string[])[]): string[] {
  const lines = [columns.map(({ title }) => title), ...rows.map((row) => row.map(visible))]
  const widths = columns.map((_, index) => Math.max(...lines.map((line) => widthOf(line[index] ?? ''))))
  return lines.map((line) =>
    line
      .map((cell, index) => {
        const padding = ' '.repeat((widths[index] ?? 0) - widthOf(cell))
        return columns[index]?.right === true ? padding + cell : cell + padding
      })
      .join(gap)
      .trimEnd(),
  )
}
