/**
 * Parses a `.meta` file like libucl, which bhyve uses. libucl is not a JSON parser: the first of several equal keys
 * counts, and variables are expanded. It accepts comments, units, bare words, and line ends instead of commas. A number
 * out of range is an error, as in newer trees. Older trees convert it to a string, which also makes a restore fail.
 */

/** Integers are bigints. Other numbers are JavaScript numbers. */
export type Ucl = string | bigint | number | boolean | null | readonly Ucl[] | UclObject
export type UclObject = ReadonlyMap<string, Ucl>

/** The variables that libucl defines for the file it parses. */
interface UclVariables {
  readonly FILENAME: string
  readonly CURDIR: string
}

const maxDepth = 1000
const escapes: Readonly<Record<string, string>> = { b: '\b', f: '\f', n: '\n', r: '\r', t: '\t' }
const multipliers: Readonly<Record<string, readonly [number, number]>> = {
  k: [1000, 1024],
  m: [1000 ** 2, 1024 ** 2],
  g: [1000 ** 3, 1024 ** 3],
}
const booleans = new Map(
  Object.entries({ true: true, yes: true, on: true, false: false, no: false, off: false }),
)

/** Throws a SyntaxError. Ignores text after the object. */
export function parseUcl(text: string, variables: UclVariables): UclObject {
  return new UclReader(text, variables).root()
}

class UclReader {
  readonly #text: string
  readonly #variables: UclVariables
  #at = 0
  #depth = 0

  constructor(text: string, variables: UclVariables) {
    this.#text = text
    this.#variables = variables
  }

  root(): UclObject {
    this.#skip()
    this.#take('{')
    return this.#object()
  }

  #object(): UclObject {
    const members = new Map<string, Ucl>()
    this.#list('}', () => {
      const key = this.#key()
      const value = this.#value()
      if (!members.has(key)) members.set(key, value)
    })
    return members
  }

  #array(): readonly Ucl[] {
    const items: Ucl[] = []
    this.#list(']', () => items.push(this.#value()))
    return items
  }

  /** Reads up to and including the closing bracket. A comma, a semicolon or a line end separates two entries. */
  #list(close: string, readOne: () => void): void {
    if (++this.#depth > maxDepth) throw this.#error('nested too deep')
    for (let separated = true; ; separated = /[,;\n]/.test(this.#skip(/[ \t\r\n\v\f,;]/y))) {
      this.#skip()
      if (this.#text[this.#at] === close) break
      if (!separated) throw this.#error('delimiter is missing')
      readOne()
    }
    this.#at++
    this.#depth--
  }

  #key(): string {
    const isQuoted = this.#text[this.#at] === '"'
    const key = isQuoted ? this.#quoted().text : this.#match(/[A-Za-z_/][\w\-/.]*/y)
    if (key === '') throw this.#error('empty keys are not allowed')
    // The colon must be on the same line as the key. After a line end, libucl does not parse this as key and value.
    if (!/[:=]/.test(this.#match(/[ \t]*[:=]?/y))) throw this.#error('no value after a key')
    return key
  }

  #value(): Ucl {
    this.#skip()
    const first = this.#text[this.#at]
    if (first === '{' || first === '[') {
      this.#at++
      return first === '{' ? this.#object() : this.#array()
    }
    if (first !== '"') return this.#atom()
    const { text, hasDollar } = this.#quoted()
    return hasDollar ? this.#expanded(text) : text
  }

  /** `hasDollar`: the text contains `$` literally, not only as an escape such as `\u0024`. */
  #quoted(): { text: string; hasDollar: boolean } {
    this.#take('"')
    // eslint-disable-next-line no-control-regex -- libucl also accepts 0x1f.
    const raw = this.#match(/(?:[^\0-\x1e"\\]|\\[^])*/y)
    this.#take('"')
    const text = raw.replace(/\\(?:u([\da-f]{4})|([^]))/gi, (_, code?: string, letter?: string) =>
      code === undefined ? (escapes[letter ?? ''] ?? letter ?? '') : character(Number.parseInt(code, 16)),
    )
    // A C string ends at the first NUL.
    return { text: text.split('\0', 1)[0] ?? '', hasDollar: raw.includes('$') }
  }

  #expanded(text: string): string {
    const known = /\$(?:\{(FILENAME|CURDIR)\}|(FILENAME|CURDIR)|\$)/g
    let found = false
    const expanded = text.replace(known, (_, braced?: keyof UclVariables, bare?: keyof UclVariables) => {
      const name = braced ?? bare
      found ||= name !== undefined
      return name === undefined ? '$' : this.#variables[name]
    })
    return found ? expanded : text
  }

  #atom(): Ucl {
    const text = this.#match(/[^,;\n\r}\]#]*/y).trim()
    if (text === '') throw this.#error('string value must not be empty')
    if (text === 'null') return null
    return booleans.get(text) ?? this.#number(text) ?? text
  }

  #number(text: string): bigint | number | undefined {
    const [, sign, digits = '', fraction, unit, bytes] =
      /^(-?)(0x[\da-f]+|\d+)(\.\d*(?:e[+-]?\d+)?|e[+-]?\d+)?(?:([kmg])(b)?)?$/i.exec(text) ?? []
    if (sign === undefined) return undefined
    const factor = multipliers[unit?.toLowerCase() ?? '']?.[bytes === undefined ? 0 : 1] ?? 1
    const value =
      fraction === undefined ? BigInt(digits) * BigInt(factor) : Number(digits + fraction) * factor
    if (!isInRange(value)) throw this.#error('numeric value out of range')
    return sign === '' ? value : -value
  }

  /** Skips comments and the characters that `also` matches. Returns the skipped text. */
  #skip(also = /[ \t\r\n\v\f]/y): string {
    const start = this.#at
    for (;;) {
      const before = this.#at
      while (this.#match(also) !== '');
      this.#match(/#[^\n]*/y)
      this.#match(/\/\*[^]*?\*\//y)
      if (this.#at === before) return this.#text.slice(start, this.#at)
    }
  }

  #match(what: RegExp): string {
    what.lastIndex = this.#at
    const found = what.exec(this.#text)?.[0] ?? ''
    this.#at += found.length
    return found
  }

  #take(wanted: string): void {
    if (this.#text[this.#at] !== wanted) throw this.#error(`'${wanted}' expected`)
    this.#at++
  }

  #error(message: string): SyntaxError {
    return new SyntaxError(`${message} at ${String(this.#at)}`)
  }
}

function isInRange(value: bigint | number): boolean {
  return typeof value === 'bigint' ? BigInt.asIntN(64, value) === value : Number.isFinite(value)
}

/** libucl encodes half a surrogate pair as three bytes that are not valid UTF-8. */
function character(code: number): string {
  return code >= 0xd800 && code <= 0xdfff ? '\ufffd' : String.fromCharCode(code)
}
