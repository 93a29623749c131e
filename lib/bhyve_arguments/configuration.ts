/**
 * bhyve's configuration tree (bhyve_config(5), upstream's `config.c`). Options assign values to variables. A later
 * value replaces an earlier one. A variable cannot have children.
 */
import { ArgumentsFault } from './arguments_fault.js'

const maxReferences = 15

/** A variable cannot have both a value and variables below it. */
function conflict(path: string, below: string): ArgumentsFault {
  return new ArgumentsFault(
    `the arguments set both '${path}' and '${below}', but bhyve accepts only one: remove one`,
  )
}

export class Configuration {
  readonly #values = new Map<string, string>()

  set(path: string, value: string): void {
    for (let dot = path.indexOf('.'); dot !== -1; dot = path.indexOf('.', dot + 1)) {
      const node = path.slice(0, dot)
      if (node === '' || node.endsWith('.'))
        throw new ArgumentsFault(`'${path}' is not a valid variable name`)
      if (this.#values.has(node)) throw conflict(node, path)
    }
    const below = this.paths().find((other) => other.startsWith(`${path}.`))
    if (below !== undefined) throw conflict(path, below)
    this.#values.set(path, value)
  }

  /** Assigns a variable below a node. The name must be a single component. */
  setIn(node: string, name: string, value: string): void {
    if (name.includes('.'))
      throw new ArgumentsFault(
        `'${name}' cannot be set for '${node}', because it contains '.': correct or omit it`,
      )
    this.set(`${node}.${name}`, value)
  }

  /** Returns the value with all `%(variable)` references replaced. */
  get(path: string): string | undefined {
    const value = this.#values.get(path)
    return value?.includes('%') === true ? this.#expand(value, 0) : value
  }

  hasNode(path: string): boolean {
    return this.paths().some((other) => other.startsWith(`${path}.`))
  }

  paths(): string[] {
    return [...this.#values.keys()]
  }

  /** A backslash escapes the next character. bhyve expands a value only if it contains a `%`. */
  #expand(value: string, depth: number): string {
    return value.replace(/%\(([^)]*)\)|\\([^]?)/g, (all, name: string | undefined, literal?: string) => {
      if (name === undefined) return literal ?? ''
      if (depth > maxReferences) return all
      const nested = this.#values.get(name)
      return nested === undefined ? '' : this.#expand(nested, depth + 1)
    })
  }
}
