// Finds the rules that a state breaks, and reduces such a state to a smaller one that breaks the same rule.
import { Disk, modelNames } from './disks.mjs'
import { load } from './record.mjs'
import { brokenRules, Known, survivorsIn } from './rules.mjs'
import { formatState, parseState } from './states.mjs'

export class Checker {
  #directory
  #judge
  #recorded = new Map()
  #disks = new Map()

  get judge() {
    return this.#judge
  }

  constructor(directory, judge) {
    this.#directory = directory
    this.#judge = judge
  }

  recorded(operation) {
    if (!this.#recorded.has(operation)) {
      const recorded = load(this.#directory, operation)
      this.#recorded.set(operation, recorded)
      if (recorded.base === undefined) this.#complete(recorded)
      else this.#completeRecovery(recorded)
    }
    return this.#recorded.get(operation)
  }

  #complete(recorded) {
    recorded.knownAt = (cut) => new Known(recorded, cut)
    for (const generation of Object.values(recorded.generations)) {
      if (generation.inodes === undefined) continue
      const from = modelNames.map((model) => durableFrom(this.disk(recorded.name, model), generation))
      generation.durableFrom = Math.max(...from)
    }
  }

  /**
   * After the recovery, the results that callers had before the first failure must still hold. Bytes that survived it
   * must too.
   */
  #completeRecovery(recorded) {
    const state = this.parse(recorded.base)
    const first = this.recorded(state.operation)
    const { generations, foreign } = first
    const digest = (data) => this.#judge.digest(data)
    const known = first.knownAt(state.cut)
    const survivors = survivorsIn({ ...first, known, digest, cut: state.cut, tree: this.tree(state) })
    const knownAt = (cut) => {
      const later = first.knownAt(state.cut)
      for (const { mark } of recorded.history.steps.slice(0, cut)) if (mark !== undefined) later.learn(mark)
      return later
    }
    Object.assign(recorded, { generations, foreign, survivors, knownAt })
  }

  /** `without`: the step of an fsync to leave out. */
  disk(operation, model, without) {
    const key = `${operation} ${model} ${without}`
    if (!this.#disks.has(key))
      this.#disks.set(key, new Disk(this.recorded(operation).history, model, without))
    return this.#disks.get(key)
  }

  parse(id, without) {
    return parseState(id, (operation, model) => this.disk(operation, model, without))
  }

  tree(state, disk = this.disk(state.operation, state.model)) {
    return disk.treeAt(state.cut, state)
  }

  async check(state, disk) {
    const recorded = this.recorded(state.operation)
    const tree = this.tree(state, disk)
    const observed = await this.#judge.observe(tree, recorded.bootId)
    const digest = (data) => this.#judge.digest(data)
    return brokenRules({ ...recorded, digest }, state.cut, tree, observed)
  }

  /** Restores lost changes, piece by piece and file by file, as long as the same rule stays broken. */
  async smallest(state, rule) {
    const breaks = async (candidate) => (await this.check(candidate)).some((broken) => broken.rule === rule)
    let best = state
    for (const smaller of this.#smallerThan(best)) {
      const candidate = smaller(best)
      if (formatState(candidate) !== formatState(best) && (await breaks(candidate))) best = candidate
    }
    return best
  }

  #smallerThan({ lost, fates, keeps }) {
    const keeping = keeps === 'last' ? [] : [(best) => ({ ...best, keeps: 'last' })]
    const times = [...fates.keys()].map((id) => (best) => ({
      ...best,
      fates: withFate(best.fates, id, 'keep'),
    }))
    const pieces = [...lost].map((piece) => (best) => ({ ...best, lost: withPiece(best.lost, piece) }))
    return [...pieces, ...times, ...keeping]
  }
}

/** The first cut at which all files of a generation are on disk in every state. */
function durableFrom(disk, { inodes }) {
  const ids = Object.values(inodes)
  const isDurableAt = (cut) => {
    const { pieces, files } = disk.pendingAt(cut)
    const choice = {
      lost: new Set(pieces),
      fates: new Map(files.map(({ id }) => [id, 'lost'])),
      keeps: 'last',
    }
    const tree = disk.treeAt(cut, choice)
    return ids.every((id) => tree.find((file) => file.id === id)?.data.equals(disk.history.inodes[id].data))
  }
  const cuts = Array.from({ length: disk.history.steps.length + 1 }, (_, cut) => cut)
  return cuts.find(isDurableAt) ?? Infinity
}

function withFate(fates, id, fate) {
  const others = new Map(fates)
  if (fate === 'keep') others.delete(id)
  return others
}

/** Restores a piece together with the pieces it needs. */
function withPiece(lost, piece) {
  const fewer = new Set(lost)
  const restore = (one) => {
    if (!fewer.delete(one)) return
    one.needs.forEach(restore)
  }
  restore(piece)
  return fewer
}

/** Describes a state: the calls around the failure, and what is missing on disk. */
export function describeState({ operation, model, cut, lost, fates, keeps }, disk) {
  const { history } = disk
  const around = history.steps.slice(Math.max(0, cut - 3), cut + 2).map((step, index) => {
    const at = Math.max(0, cut - 3) + index
    return `    ${at === cut ? '>> the power fails\n    ' : ''}${at}: ${step.label ?? JSON.stringify(step.mark)}`
  })
  const pieces = [...lost].map((piece) => `    not on disk: ${describePiece(history, piece)}`)
  const files = [...fates].map(([id, fate]) => `    ${nameOf(history, id)}: ${fate}`)
  const kept = keeps === 'first' ? ['    a directory with two names keeps the older one'] : []
  return [`  ${operation}, ${model}, cut ${cut}:`, ...around, ...pieces, ...files, ...kept].join('\n')
}

function describePiece({ steps }, { at, kind }) {
  return `${at}: ${steps[at].label} (${kind})`
}

function nameOf({ steps }, id) {
  return steps.findLast((step) => step.inode === id)?.label ?? `file ${id}`
}
