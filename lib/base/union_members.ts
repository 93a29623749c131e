/**
 * Returns the members of a union as a list, in the order given. The compiler checks that the `Record` names exactly the
 * members of the union. It would not notice a plain list that lacks a new member.
 */
export function membersOf<Member extends string>(members: Readonly<Record<Member, true>>): readonly Member[] {
  return Object.keys(members) as Member[]
}
