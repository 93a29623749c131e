/**
 * The members of a union as a list, in the order given. A `Record` has to name every one of them and no other: a list
 * beside a union would be believed when a member is added to one of the two.
 */
export function membersOf<Member extends string>(members: Readonly<Record<Member, true>>): readonly Member[] {
  return Object.keys(members) as Member[]
}
