/** Numbers as C reads them: strtol(3), expand_number(3), sscanf(3). */

const unitShifts: Readonly<Record<string, bigint>> = { k: 10n, m: 20n, g: 30n, t: 40n, p: 50n, e: 60n }
const mebibyte = 1n << 20n
const spaces = '[ \\t\\n\\v\\f\\r]*'
const wholeInteger = new RegExp(`^${spaces}([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)$`)
const leadingDecimal = new RegExp(`^${spaces}[+-]?[0-9]+`)
const size = /^(0[xX][0-9a-fA-F]+|[0-9]*)([kmgtpeKMGTPE]?)([bB]?)$/

/** strtol() with base 0, where the number has to be all of the text. */
export function wholeNumber(text: string): bigint | undefined {
  const [, sign, digits = ''] = wholeInteger.exec(text) ?? []
  const value = sign === undefined ? undefined : magnitude(digits)
  return value !== undefined && sign === '-' ? -value : value
}

/** A leading zero means octal: `08` is no number. */
function magnitude(digits: string): bigint | undefined {
  if (!/^0[0-9]/.test(digits)) return BigInt(digits)
  return /[89]/.test(digits) ? undefined : BigInt(`0o${digits.slice(1)}`)
}

/**
 * libvmmapi's vm_parse_memsize(), in bytes: a plain number below a mebibyte counts mebibytes, everything else is for
 * expand_number(), which takes a unit without a number for 0.
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
 * What sscanf() makes of `%d:%d:...` with at most `most` numbers: it reads as far as it can, and the rest of the text
 * does not matter. Spaces may stand before a number, not before a colon.
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

/** strtoimax() stops at its limits; what is stored is an int. */
function toInt(value: bigint): number {
  const limit = 1n << 63n
  const clamped = value >= limit ? limit - 1n : value < -limit ? -limit : value
  return Number(BigInt.asIntN(32, clamped))
}
