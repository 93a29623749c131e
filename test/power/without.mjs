// Leaves out one fsync at a time. Checks the states that are possible only without that fsync. Everything else is on
// disk. A rule that is also broken with the fsync does not count.
import { generator } from '../support/random.mjs'
import { formatState } from './states.mjs'

const randomOnes = 4

/** Prints a table: operation, what is flushed, and what happens without it. */
export async function showWithout(checker, operations, models) {
  let missed = 0
  let total = 0
  for (const operation of operations) {
    const { history } = checker.recorded(operation)
    for (const sync of history.syncs) {
      const found = await withoutOne(checker, operation, models, sync)
      total++
      if (found.rule !== undefined) missed++
      console.log(
        `${operation.padEnd(26)} ${String(sync.at).padStart(3)} ${history.steps[sync.at].label}: ${wordsFor(found)}`,
      )
    }
  }
  console.log(`${missed} of ${total} fsyncs are needed`)
  return 0
}

function wordsFor({ states, rule, why, state, model }) {
  if (states === 0) return 'no state differs'
  if (rule === undefined) return `${states} other states, none breaks a rule`
  return `${rule} (${model}): ${why}\n${' '.repeat(31)}--replay '${formatState(state)}' --drop ${state.dropped}`
}

async function withoutOne(checker, operation, models, { at }) {
  let states = 0
  for (const model of models) {
    const pair = { whole: checker.disk(operation, model), lesser: checker.disk(operation, model, at) }
    for (const state of differing(operation, pair, at)) {
      states++
      const broken = await newlyBroken(checker, state, pair)
      if (broken !== undefined) return { states, ...broken, model, state: { ...state, dropped: at } }
    }
  }
  return { states }
}

async function newlyBroken(checker, state, { whole, lesser }) {
  const broken = await checker.check(state, lesser)
  if (broken.length === 0) return undefined
  const { pieces, files } = whole.pendingAt(state.cut)
  const ids = new Set([...state.lost].map(({ id }) => id))
  const lost = new Set(pieces.filter(({ id }) => ids.has(id)))
  const fates = new Map([...state.fates].filter(([id]) => files.some((file) => file.id === id)))
  const known = new Set((await checker.check({ ...state, lost, fates }, whole)).map(({ rule }) => rule))
  return broken.find(({ rule }) => !known.has(rule))
}

/** States in which something is not on disk that would be there with the fsync. */
function* differing(operation, { whole, lesser }, at) {
  for (let cut = at + 1; cut <= whole.history.steps.length; cut++) {
    const [before, now] = [whole.pendingAt(cut), lesser.pendingAt(cut)]
    const known = new Set(before.pieces.map(({ id }) => id))
    const pieces = now.pieces.filter(({ id }) => !known.has(id))
    const files = now.files.filter(
      (file) => !before.files.includes(file) || isOlder(file, whole, lesser, cut),
    )
    if (pieces.length === 0 && files.length === 0) return
    for (const choice of choicesOf(pieces, files, cut)) {
      const lost = lesser.closed(choice.lost, now.pieces)
      for (const keeps of lesser.model === 'soft' ? ['last', 'first'] : ['last'])
        yield { operation, model: lesser.model, cut, lost, fates: choice.fates, keeps }
    }
  }
}

function isOlder(file, whole, lesser, cut) {
  return lesser.coveredAt(file, cut) < whole.coveredAt(file, cut)
}

function* choicesOf(pieces, files, cut) {
  const all = (fate) => new Map(files.map(({ id }) => [id, fate]))
  yield { lost: pieces, fates: all('lost') }
  yield { lost: pieces, fates: new Map() }
  yield { lost: [], fates: all('zero') }
  for (const piece of pieces) yield { lost: [piece], fates: new Map() }
  for (const file of files) {
    const half = Math.floor(file.contents[file.countAt(cut)].length / 2)
    for (const fate of ['zero', 'lost', `cut${half}`, 'keep~'])
      yield { lost: [], fates: new Map([[file.id, fate]]) }
  }
  const random = generator(cut)
  for (let i = 0; i < randomOnes && pieces.length > 1; i++)
    yield { lost: pieces.filter(() => random() < 0.5), fates: all(random() < 0.5 ? 'zero' : 'keep') }
}
