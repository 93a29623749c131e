/** Checks of single values. The errors name the option. */

/** Throws a TypeError or a RangeError. */
export function integer(option: string, value: number, min: number, max: number): number {
  numberWithin(option, value, min, max)
  if (!Number.isInteger(value))
    throw new RangeError(`The option '${option}' must be a whole number, not ${String(value)}`)
  return value
}

/** Throws a TypeError or a RangeError. */
export function numberWithin(option: string, value: number, min: number, max: number): number {
  if (typeof value !== 'number')
    throw new TypeError(`The option '${option}' must be a number, not ${typeof value}`)
  if (!(value >= min && value <= max)) {
    throw new RangeError(
      `The option '${option}' must be from ${String(min)} to ${String(max)}, not ${String(value)}`,
    )
  }
  return value
}

/** Throws a TypeError unless the value is a path. */
export function pathText(option: string, value: unknown): string {
  if (typeof value !== 'string' || value === '' || value.includes('\0')) {
    throw new TypeError(
      `The option '${option}' must be a path: a string that is not empty and contains no NUL`,
    )
  }
  return value
}

/** As a type guard, Array.isArray() would lose the element type of a read-only array. */
export function isArray(value: unknown): boolean {
  return Array.isArray(value)
}
