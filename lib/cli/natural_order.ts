/** The order of names for people: `vm2` before `vm10`. */
const collator = new Intl.Collator('en', { numeric: true })

/** Names that the collator treats as equal, such as `vm1` and `vm01`, are ordered by their characters. */
export function naturally(one: string, other: string): number {
  return collator.compare(one, other) || (one < other ? -1 : Number(one > other))
}
