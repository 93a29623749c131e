/**
 * Makes invisible characters visible in text for people. A name can contain characters that are not displayed but
 * change how the rest is displayed: bidirectional controls, joiners, fillers. They are replaced with escapes, so that
 * different names never appear to be the same.
 */
const hidden = /[\p{Cf}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/gu

/** Replaces these characters with escapes such as `\u202e` or `\u{e0041}`. Idempotent. */
export function visible(text: string): string {
  return text.replace(hidden, (character) => {
    const code = (character.codePointAt(0) ?? 0).toString(16).padStart(4, '0')
    return code.length === 4 ? `\\u${code}` : `\\u{${code}}`
  })
}
