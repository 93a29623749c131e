/** Errors as plain data. */

/** Only these, because a foreign error can have any properties: secrets, functions, cycles. */
interface CauseFacts {
  name: string
  code?: string
  message: string
}

/** The name, the code, the message, the other own properties, and facts about the cause. */
export function plainFacts(error: Error & { code: string }): Record<string, unknown> {
  const { name, code, message, cause, ...details } = error
  return { name, code, message, ...details, ...(cause === undefined ? {} : { cause: causeFacts(cause) }) }
}

/** Never throws, although getters of a foreign object may. */
function causeFacts(cause: unknown): CauseFacts {
  if (typeof cause !== 'object' || cause === null) return { name: typeof cause, message: String(cause) }
  const code = textOf(cause, 'code')
  const facts = { name: textOf(cause, 'name') ?? 'Error', message: textOf(cause, 'message') ?? '' }
  return code === undefined ? facts : { ...facts, code }
}

function textOf(value: object, key: string): string | undefined {
  try {
    const text: unknown = Reflect.get(value, key)
    return typeof text === 'string' ? text : undefined
  } catch {
    return undefined
  }
}
