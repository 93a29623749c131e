/**
 * A context of `node:vm`, as test runners make them (vitest's vmThreads), has no `Symbol.dispose` on Node 20 and 22, and
 * what `using` is compiled to needs it. Every entry imports this before anything else.
 */
for (const name of ['dispose', 'asyncDispose'] as const) {
  if (typeof Symbol[name] === 'symbol') continue
  Object.defineProperty(Symbol, name, { value: Symbol(`Symbol.${name}`) })
}
