/** "Did you mean ...?" for a misspelled command or option. */

/** A clause for the end of a message, or an empty text if no candidate is similar. */
export function suggestion(word: string, candidates: readonly string[]): string {
  const [nearest] = candidates
    .map((candidate) => ({ candidate, distance: distanceOf(word, candidate) }))
    .filter(({ distance }) => distance <= Math.max(1, Math.floor(word.length / 3)))
    .sort((one, other) => one.distance - other.distance)
  return nearest === undefined ? '' : `. Did you mean '${nearest.candidate}'?`
}

/**
 * The number of insertions, deletions, replacements and exchanges of neighbours that turn one word into the other.
 * Words that are too long to be names are not compared.
 */
function distanceOf(one: string, other: string): number {
  if (one.length > 40) return Infinity
  let before: number[] = []
  let previous = Array.from({ length: other.length + 1 }, (_, column) => column)
  for (let row = 1; row <= one.length; row++) {
    const current = [row]
    for (let column = 1; column <= other.length; column++) {
      const isSame = one[row - 1] === other[column - 1]
      const isExchange = one[row - 1] === other[column - 2] && one[row - 2] === other[column - 1]
      const costs = [
        at(previous, column) + 1,
        at(current, column - 1) + 1,
        at(previous, column - 1) + (isSame ? 0 : 1),
        isExchange ? at(before, column - 2) + 1 : Infinity,
      ]
      current.push(Math.min(...costs))
    }
    before = previous
    previous = current
  }
  return at(previous, other.length)
}

function at(row: readonly number[], column: number): number {
  return row[column] ?? Infinity
}
