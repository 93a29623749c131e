/** Parses numbers and truth values as C and bhyve do: strtol(3), expand_number(3), sscanf(3), `parse_config_bool()`. */

const unitShifts: Readonly<Record<string, bigint>> = { k: 10n, m: 20n, g: 30n, t: 40n, p: 50n, e: 60n }
const mebibyte = 1n << 20n
const spaces = '[ \\t\\n\\v\\f\\r]*'
const wholeInteger = new RegExp(`^${spaces}([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)$`)
const leadingDecimal = new RegExp(`^${spaces}[+-]?[0-9]+`)
const size = /^(0[xX][0-9a-fA-F]+|[0-9]*)([kmgtpeKMGTPE]?)([bB]?)$/

/** strtol() with base 0. The entire text must be a number. */
export function wholeNumber(text: string): bigint | undefined {
  const [, sign, digits = ''] = wholeInteger.exec(text) ?? []
  const value = sign === undefined ? undefined : magnitude(digits)
  return value !== undefined && sign === '-' ? -value : value
}

/** A leading zero means octal, so `08` is not a number. */
function magnitude(digits: string): bigint | undefined {
  if (!/^0[0-9]/.test(digits)) return BigInt(digits)
  return /[89]/.test(digits) ? undefined : BigInt(`0o${digits.slice(1)}`)
}

/**
 * libvmmapi's vm_parse_memsize(). Returns bytes. A plain number below 1 MiB is a number of mebibytes. Everything else
 * is parsed as by expand_number(), for which a unit without a number means 0.
 */
export function memoryBytes(text: string): number | undefined {
  const plain = wholeNumber(text)
  if (plain !== undefined) return bounded(plain < mebibyte ? plain * mebibyte : plain)
  const [, digits, unit = '', byte = ''] = size.exec(text) ?? []
  if (digits === undefined || unit + byte === '') return undefined
  const number = digits === '' ? 0n : magnitude(digits)
  return number === undefined ? undefined : bounded(number << (unitShifts[unit.toLowerCase()] ?? 0n))
}

function bounded(value: bigint): number | undefined {
  return value >= 0n && value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : undefined
}

/**
 * sscanf() with the format `%d:%d:...` and at most `max` numbers. It parses as far as possible and ignores the rest of
 * the text. Spaces are allowed before a number but not before a colon.
 */
export function scanIntegers(text: string, max: number): number[] {
  const found: number[] = []
  let rest = text
  while (found.length < max) {
    const number = leadingDecimal.exec(rest)?.[0]
    if (number === undefined) break
    found.push(toInt(BigInt(number.trim())))
    rest = rest.slice(number.length)
    if (!rest.startsWith(':')) break
    rest = rest.slice(1)
  }
  return found
}

/** strtoimax() clamps to its limits. The result is then stored in an int. */
function toInt(value: bigint): number {
  const limit = 1n << 63n
  const clamped = value >= limit ? limit - 1n : value < -limit ? -limit : value
  return Number(BigInt.asIntN(32, clamped))
}

/** The values that bhyve accepts for true. */
export function isTrue(value: string | undefined): boolean {
  return value !== undefined && ['true', 'on', 'yes', '1'].includes(value.toLowerCase())
}
