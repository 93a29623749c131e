type Defined<T> = { [K in keyof T as undefined extends T[K] ? never : K]: T[K] } & {
  [K in keyof T as undefined extends T[K] ? K : never]?: Exclude<T[K], undefined>
}

/**
 * A copy without the undefined properties, in the same order. For objects that are made by the thousand: spreading an
 * object for each optional property takes ten times as long.
 */
export function defined<T extends object>(properties: T): Defined<T> {
  const result: Record<string, unknown> = {}
  for (const key in properties) {
    const value = properties[key]
    if (value !== undefined) result[key] = value
  }
  return result as Defined<T>
}
