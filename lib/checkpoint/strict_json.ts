/**
 * Reads the subset of JSON that libucl, bhyve's parser, reads in the same way (protocol.md section 6). libucl differs
 * from JSON: for example, it uses the first of two equal keys, rejects an empty key, and expands variables. Each rule
 * here that is stricter than JSON covers one such difference. Input is rejected if bhyve never writes it and libucl may
 * read it differently.
 */

/** `at`: offset of the value in the text. */
export type JsonValue = { readonly at: number } & (
  | { readonly kind: 'object'; readonly members: ReadonlyMap<string, JsonValue> }
  | { readonly kind: 'list'; readonly items: readonly JsonValue[] }
  | { readonly kind: 'string'; readonly text: string }
  | { readonly kind: 'number'; readonly value: bigint }
  | { readonly kind: 'word' }
)

export class JsonFault extends Error {
  readonly at: number

  constructor(message: string, at: number) {
    super(message)
    this.at = at
  }
}

/** Limit for one list or object. */
const maxEntries = 1024
const maxValues = 16 * maxEntries
const deepest = 16
const shownKeyLength = 64

const [tab, lineFeed, carriageReturn, space] = [0x09, 0x0a, 0x0d, 0x20]
const word = /[-+.\w]*/y
const wholeNumber = /^(?:0|-?[1-9]\d{0,18})$/
const words: readonly string[] = ['true', 'false', 'null']
/** bhyve's parser expands these two variables. Without braces, a longer name with such a prefix is expanded too. */
const variable = /\$(?:\{(?:FILENAME|CURDIR)\}|FILENAME|CURDIR)/
/** libucl decodes each half of a surrogate pair separately, and ends the string at a NUL. */
const halfOrNul = /^\\u(?:0000|d[89a-f])/i

/** Throws a JsonFault. Limits on values, entries and depth bound the work for any text. */
export function readJson(text: string): JsonValue {
  return new Reader(text).document()
}

/** Line and column are counted from 1. */
export function lineAndColumn(text: string, at: number): { line: number; column: number } {
  let line = 1
  let start = 0
  for (let end = text.indexOf('\n'); end !== -1 && end < at; end = text.indexOf('\n', start)) {
    line++
    start = end + 1
  }
  return { line, column: at - start + 1 }
}

class Reader {
  readonly #text: string
  #at = 0
  #values = 0

  constructor(text: string) {
    this.#text = text
  }

  document(): JsonValue {
    const value = this.#value(0)
    this.#skip()
    if (this.#at < this.#text.length) throw this.#fault('there is text after the end of the document')
    return value
  }

  #value(depth: number): JsonValue {
    this.#skip()
    const at = this.#at
    this.#values++
    if (this.#values > maxValues) throw this.#fault(`there are more than ${maxValues} values`)
    if (depth > deepest) throw this.#fault(`the nesting is deeper than ${deepest} levels`)
    const first = this.#text[at]
    if (first === '{') return { at, kind: 'object', members: this.#members(depth) }
    if (first === '[') return { at, kind: 'list', items: this.#items(depth) }
    if (first === '"') return { at, kind: 'string', text: this.#stringValue() }
    return { at, ...this.#scalar() }
  }

  #members(depth: number): Map<string, JsonValue> {
    const members = new Map<string, JsonValue>()
    this.#entries('}', () => {
      const at = this.#at
      const key = this.#string()
      if (key === '') throw new JsonFault('a key is empty', at)
      if (members.has(key)) throw new JsonFault(`the key ${shown(key)} occurs twice`, at)
      // libucl treats a line break after a key differently.
      this.#skipInLine()
      this.#expect(':')
      members.set(key, this.#value(depth + 1))
      return members.size
    })
    return members
  }

  #items(depth: number): JsonValue[] {
    const items: JsonValue[] = []
    this.#entries(']', () => items.push(this.#value(depth + 1)))
    return items
  }

  /** Reads from the opening to the closing bracket. `readOne` returns the number of entries so far. */
  #entries(close: string, readOne: () => number): void {
    this.#at++
    this.#skip()
    if (this.#text[this.#at] === close) {
      this.#at++
      return
    }
    for (;;) {
      if (readOne() > maxEntries) throw this.#fault(`a list or object has more than ${maxEntries} entries`)
      this.#skip()
      if (this.#text[this.#at] !== ',') break
      this.#at++
      this.#skip()
    }
    this.#expect(close)
  }

  #stringValue(): string {
    const at = this.#at
    const text = this.#string()
    if (variable.test(text)) throw new JsonFault('a string contains a variable that bhyve would expand', at)
    return text
  }

  #string(): string {
    const start = this.#at
    this.#expect('"')
    const quoted = this.#text.slice(start, this.#text.indexOf('"', this.#at) + 1)
    if (plainString.test(quoted)) {
      this.#at = start + quoted.length
      return quoted.slice(1, -1)
    }
    while (this.#text[this.#at] !== '"') {
      if (this.#text[this.#at] === '\\') this.#at++
      if (this.#at >= this.#text.length) throw this.#fault('a string is not terminated')
      this.#at++
    }
    this.#at++
    return decoded(this.#text.slice(start, this.#at), start)
  }

  #scalar(): { kind: 'number'; value: bigint } | { kind: 'word' } {
    const at = this.#at
    const text = this.#word()
    if (words.includes(text)) return { kind: 'word' }
    if (text === '') throw this.#fault('a value is missing')
    if (!wholeNumber.test(text))
      throw new JsonFault('a number is not in the form in which bhyve writes whole numbers', at)
    const value = BigInt(text)
    if (BigInt.asIntN(64, value) !== value) throw new JsonFault('a number has more than 64 bits', at)
    return { kind: 'number', value }
  }

  /** bhyve indents its documents: most of the characters are blanks. */
  #skip(): void {
    for (;;) {
      const code = this.#text.charCodeAt(this.#at)
      if (code !== space && code !== lineFeed && code !== tab && code !== carriageReturn) return
      this.#at++
    }
  }

  #skipInLine(): void {
    for (;;) {
      const code = this.#text.charCodeAt(this.#at)
      if (code !== space && code !== tab) return
      this.#at++
    }
  }

  #word(): string {
    const start = this.#at
    word.lastIndex = start
    if (word.test(this.#text)) this.#at = word.lastIndex
    return this.#text.slice(start, this.#at)
  }

  #expect(character: string): void {
    if (this.#text[this.#at] !== character) throw this.#fault(`a '${character}' is missing`)
    this.#at++
  }

  #fault(message: string): JsonFault {
    return new JsonFault(message, this.#at)
  }
}

/** Most strings have nothing to decode. JSON.parse() and a search for escapes would take most of the time of a document. */
const plainString = /^"[ !#-[\]-\u{10ffff}]*"$/u

function decoded(quoted: string, at: number): string {
  for (const [escape] of quoted.matchAll(/\\(?:u[\da-f]{4}|[^])/gi)) {
    if (halfOrNul.test(escape))
      throw new JsonFault('a string has an escape that bhyve reads differently from JSON', at)
  }
  try {
    return JSON.parse(quoted) as string
  } catch {
    throw new JsonFault('a string has a control character or an escape that JSON does not allow', at)
  }
}

function shown(key: string): string {
  return `'${key.slice(0, shownKeyLength).replace(/\p{C}/gu, '?')}'`
}
