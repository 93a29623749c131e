/**
 * bhyve's configuration tree (bhyve_config(5), upstream's `config.c`): every option becomes a variable, the later of
 * two values wins, and a variable has no children.
 */
import { ArgumentsFault } from './arguments_fault.js'

const maxReferences = 15

export class Configuration {
  readonly #values = new Map<string, string>()

  set(path: string, value: string): void {
    for (let dot = path.indexOf('.'); dot !== -1; dot = path.indexOf('.', dot + 1)) {
      const node = path.slice(0, dot)
      if (node === '' || node.endsWith('.')) throw new ArgumentsFault(`'${path}' names no variable`)
      if (this.#values.has(node)) throw new ArgumentsFault(`'${path}' is below the variable '${node}'`)
    }
    if (this.hasNode(path))
      throw new ArgumentsFault(`'${path}' has variables below it and cannot have a value`)
    this.#values.set(path, value)
  }

  /** A value below an existing node, whose name cannot be a path. */
  setIn(node: string, name: string, value: string): void {
    if (name.includes('.')) throw new ArgumentsFault(`'${name}' cannot be set for '${node}'`)
    this.set(`${node}.${name}`, value)
  }

  /** With `%(variable)` replaced. */
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

  /** A backslash takes the meaning of the next character away; bhyve expands only values with a `%` at all. */
  #expand(value: string, depth: number): string {
    return value.replace(/%\(([^)]*)\)|\\([^]?)/g, (all, name: string | undefined, literal?: string) => {
      if (name === undefined) return literal ?? ''
      if (depth > maxReferences) return all
      const nested = this.#values.get(name)
      return nested === undefined ? '' : this.#expand(nested, depth + 1)
    })
  }
}
