// Collects violations by operation, model and rule, and keeps the simplest state of each.
import { describeState } from './checker.mjs'
import { formatState } from './states.mjs'

export class Findings {
  #byKind = new Map()
  #judged = new Map()
  violations = 0

  add(state, broken) {
    this.#judged.set(state.model, (this.#judged.get(state.model) ?? 0) + 1)
    for (const { rule } of broken) {
      this.violations++
      const kind = `${state.operation} ${state.model} ${rule}`
      const found = this.#byKind.get(kind) ?? { rule, state, count: 0 }
      found.count++
      if (isSimpler(state, found.state)) found.state = state
      this.#byKind.set(kind, found)
    }
  }

  get judged() {
    return [...this.#judged.values()].reduce((sum, count) => sum + count, 0)
  }

  async report(checker, directory) {
    const sorted = [...this.#byKind].sort(([one], [other]) => (one < other ? -1 : 1))
    for (const [, { rule, state, count }] of sorted) {
      const small = await checker.smallest(state, rule)
      const { why } = (await checker.check(small)).find((one) => one.rule === rule)
      console.log(`\n${rule} (${count} states): ${why}`)
      console.log(describeState(small, checker.disk(small.operation, small.model)))
      console.log(`  npm run test:power -- --traces ${directory} --replay '${formatState(small)}'`)
    }
  }

  summary(distinct) {
    const models = [...this.#judged].sort().map(([model, count]) => `${model} ${count}`)
    return `states judged: ${models.join(', ')} (${distinct} distinct); violations: ${this.violations}`
  }
}

/** Fewer losses are easier to read. */
function isSimpler(one, other) {
  const [mine, others] = [one, other].map(({ lost, fates }) => lost.size + fates.size)
  return mine === others ? formatState(one) < formatState(other) : mine < others
}
