/**
 * Text for people. A name may hold characters that show nothing and change what is seen of the others: directions of
 * writing, joiners, fillers. They are written as escapes, so that two names never look alike because of them.
 */
const hidden = /[\p{Cf}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/gu

/** The same text with those characters as `\u202e` or `\u{e0041}`. Twice changes nothing. */
export function visible(text: string): string {
  return text.replace(hidden, (character) => {
    const code = (character.codePointAt(0) ?? 0).toString(16).padStart(4, '0')
    return code.length === 4 ? `\\u${code}` : `\\u{${code}}`
  })
}
