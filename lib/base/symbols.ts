/**
 * Defines `Symbol.dispose` and `Symbol.asyncDispose` if they are missing. Compiled `using` declarations need them, and
 * a `node:vm` context on Node 20 and 22 lacks them (test runners make such contexts: vitest's vmThreads). Every entry
 * file imports this file before anything else.
 */
for (const name of ['dispose', 'asyncDispose'] as const) {
  if (typeof Symbol[name] === 'symbol') continue
  Object.defineProperty(Symbol, name, { value: Symbol(`Symbol.${name}`) })
}
