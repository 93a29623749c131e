// The rules for what is found after a power failure at a cut. The marks before the cut are what a caller knew at that
// time. A broken rule is `{ rule, why }`.
import { checkDisks, isOfDisks, isSnapshotMissing } from './disk_rules.mjs'
import { digestAt, generationOf, suffixes } from './generations.mjs'

const none = 'none'

/** What a caller knew at a cut: for each name the legal generations, its pin, its restore record. */
export class Known {
  constructor({ history, standing, generations }, cut) {
    this.names = new Map()
    this.restored = new Map()
    /** By generation: whether its checkpoint may list disks. */
    this.listsDisks = new Map()
    this.generations = generations
    this.suspend = undefined
    for (const [name, { generation, pinned, restored }] of Object.entries(standing)) {
      this.listsDisks.set(generation, new Set([generations[generation].disk !== undefined]))
      this.names.set(name, { outcomes: new Set([generation]), pinned: new Set([pinned]) })
      if (generations[generation].poweredOff) this.restored.set(generation, new Set([restored]))
      if (generations[generation].poweredOff && !restored)
        this.suspend = { name, generation, isResolved: true }
    }
    for (const { mark } of history.steps.slice(0, cut)) if (mark !== undefined) this.learn(mark)
    const { suspend } = this
    if (suspend !== undefined)
      suspend.hasEnded = suspend.isResolved || cut > generations[suspend.generation].endedAt
  }

  learn(mark) {
    if (mark.event === 'shown') this.#shown(mark)
    if (mark.event === 'listed') this.#listed(mark)
    if (mark.event === 'started' && this.suspend !== undefined) this.#restoring(new Set([true]))
    if (mark.event !== 'begin' && mark.event !== 'resolved') return
    const isDone = mark.event === 'resolved'
    const { call, name, generation } = mark
    if (call === 'create' || call === 'suspend') this.#outcome(name, String(generation), isDone)
    if (call === 'create' || call === 'suspend') this.#saving(call, String(generation), isDone)
    if (call === 'destroy' || call === 'prune') for (const one of mark.names) this.#outcome(one, none, isDone)
    if (call === 'destroyAll') for (const one of this.names.keys()) this.#outcome(one, none, isDone)
    if (call === 'pin') this.#pinned(name, mark.pinned, isDone)
    if (call === 'suspend') this.#suspending({ name, generation: String(generation), isResolved: isDone })
    if (call === 'restore') this.#restoring(new Set(isDone ? [true] : [false, true]), isDone)
  }

  of(name) {
    if (!this.names.has(name)) this.names.set(name, { outcomes: new Set([none]), pinned: new Set([false]) })
    return this.names.get(name)
  }

  #outcome(name, outcome, isDone) {
    const known = this.of(name)
    known.outcomes = new Set([...(isDone ? [] : known.outcomes), outcome])
  }

  /** A live checkpoint is published with its disks. A suspended state is published first, and gets them afterwards. */
  #saving(call, generation, isDone) {
    const hasDisk = this.generations[generation]?.disk !== undefined
    this.listsDisks.set(
      generation,
      new Set(hasDisk && call === 'suspend' && !isDone ? [true, false] : [hasDisk]),
    )
  }

  #pinned(name, pinned, isDone) {
    const known = this.of(name)
    known.pinned = new Set([...(isDone ? [] : known.pinned), pinned])
  }

  #suspending(suspend) {
    this.suspend = suspend
    this.restored.set(suspend.generation, new Set([false]))
  }

  #restoring(possible, isDone = false) {
    this.restored.set(this.suspend.generation, possible)
    this.suspend.isServed = isDone
    this.suspend.isRestoring = true
  }

  /** A result that a call returned must still hold later. */
  #shown({ name, state, digest, listsDisks }) {
    if (state !== 'complete') return
    const [generation] = Object.entries(this.generations).find(([, { memory }]) => memory === digest) ?? []
    // The judge reports a content that is that of no generation.
    if (generation === undefined) return
    this.of(name).outcomes = new Set([generation])
    this.listsDisks.set(generation, new Set([listsDisks]))
    if (this.suspend?.generation === generation) this.suspend.isResolved = true
  }

  #listed({ names }) {
    for (const [name, known] of this.names) {
      if (!names.includes(name) && known.outcomes.has(none)) known.outcomes = new Set([none])
    }
  }
}

/** `tree`: the state before the first call. */
export function brokenRules(recorded, cut, tree, observed) {
  const known = recorded.knownAt(cut)
  const context = { ...recorded, known, cut, tree, observed, broken: [] }
  context.fail = (rule, why) => context.broken.push({ rule, why })
  checkCalls(context)
  if (observed.listed.value !== undefined) {
    checkListed(context)
    checkAbsent(context)
    checkSuspended(context)
    checkDisks(context)
  }
  checkSurvivors(context)
  checkStrays(context)
  return context.broken
}

function checkCalls({ observed, fail }) {
  const { listed, suspended, early, isSame, second } = observed
  if (listed.code !== undefined) fail('call-fails', `listCheckpoints: ${listed.code} ${listed.message}`)
  if (suspended.code !== undefined)
    fail('call-fails', `suspendedCheckpoint: ${suspended.code} ${suspended.message}`)
  if (early?.code !== undefined)
    fail('call-fails', `suspendedCheckpoint, first: ${early.code} ${early.message}`)
  if (early !== undefined && early.value?.name !== suspended.value)
    fail('not-idempotent', `suspendedCheckpoint returned ${early.value?.name}, then ${suspended.value}`)
  if (!isSame) fail('not-idempotent', `the second result differs: ${JSON.stringify(second)}`)
}

/** The name of the suspend, or one that recovery derived from it. */
function isStateName({ known: { suspend } }, name) {
  return (
    suspend !== undefined && (name === suspend.name || new RegExp(`^${suspend.name}-[0-9a-z]+$`).test(name))
  )
}

/**
 * Whether a checkpoint may be kept as `NAME-ID`: a suspended state, or a live checkpoint whose bhyve ended with its
 * manager.
 */
function mayBeKept({ known, generations }, name, generation) {
  if (generation === known.suspend?.generation) return true
  return !generations[generation].poweredOff && known.names.has(/^(.*)-[0-9a-z]+$/.exec(name)?.[1])
}

function checkListed(context) {
  const { known, observed, fail } = context
  for (const set of observed.listed.value) {
    const { name, state, problems } = set
    const { got, verified } = observed.details.get(name)
    const expected = known.names.get(name)
    const generation = generationOf(context, name)
    if (state === 'complete') {
      if (generation === undefined)
        fail('complete-but-wrong', `'${name}' is complete but matches no generation`)
      else if (
        expected !== undefined ? !expected.outcomes.has(generation) : !mayBeKept(context, name, generation)
      )
        fail(
          'illegal-generation',
          `'${name}' is ${generation}; legal: ${[...(expected?.outcomes ?? [])].join(', ')}`,
        )
      else checkMarks(context, set, expected, generation)
      if (got !== 'resolved') fail('get-differs', `getCheckpoint of complete '${name}': ${got}`)
      if (generation !== undefined && !verified.ok && !isSnapshotMissing(verified))
        fail('verify-differs', `'${name}' has the right content, but verification fails`)
    } else {
      if (got !== 'ERR_CHECKPOINT_DAMAGED') fail('get-differs', `getCheckpoint of ${state} '${name}': ${got}`)
      if (!mayBeDamaged(context, name)) fail('damaged', `'${name}' is ${state}: ${problems.join(', ')}`)
    }
  }
}

/**
 * Only a suspended VM's state may be damaged, before the suspend resolved, and never in place of an older checkpoint.
 */
function mayBeDamaged(context, name) {
  const { known } = context
  if (!isStateName(context, name) || known.suspend.isResolved) return false
  const outcomes = [...known.of(known.suspend.name).outcomes]
  return (
    name !== known.suspend.name || outcomes.every((one) => one === none || one === known.suspend.generation)
  )
}

function checkMarks(
  { known, observed, generations, fail },
  { name, pinned, poweredOff, disks },
  expected,
  generation,
) {
  if (expected !== undefined && !expected.pinned.has(pinned)) fail('pin', `'${name}' has pinned: ${pinned}`)
  if (poweredOff !== generations[generation].poweredOff)
    fail('powered-off', `'${name}' has poweredOff: ${poweredOff}`)
  const possible = known.restored.get(generation) ?? new Set([false])
  const isBlocked = observed.details.get(name).blockers.includes('already-restored')
  if (!possible.has(isBlocked)) fail('restore-record', `'${name}': already-restored is ${isBlocked}`)
  // A plan for a live checkpoint with disks needs a decision about them.
  const usual = new Set(['already-restored', ...(disks.length > 0 ? ['disks-undecided'] : [])])
  const others = observed.details.get(name).blockers.filter((code) => !usual.has(code))
  if (others.length > 0) fail('plan-blocked', `'${name}' is complete but blocked by ${others.join(', ')}`)
}

function checkAbsent({ known, observed, fail }) {
  const listed = new Set(observed.listed.value.map(({ name }) => name))
  for (const [name, { outcomes }] of known.names) {
    if (listed.has(name) || outcomes.has(none)) continue
    fail('lost', `'${name}' is missing; legal: ${[...outcomes].join(', ')}`)
  }
}

function checkSuspended(context) {
  const { known, observed, fail } = context
  const { suspend } = known
  const named = observed.suspended.value
  if (named === undefined) {
    const isThere = observed.listed.value.find(
      (set) => set.state === 'complete' && isOfSuspend(context, set.name),
    )
    if (isThere !== undefined && suspend.isRestoring !== true)
      fail(
        'suspended-not-named',
        `'${isThere.name}' is the suspended state, but suspendedCheckpoint does not return it`,
      )
    return
  }
  if (suspend === undefined)
    fail('suspended-wrong', `suspendedCheckpoint returns '${named}', but no VM was suspended`)
  else if (!isOfSuspend(context, named))
    fail('suspended-wrong', `suspendedCheckpoint returns '${named}', which is not the state that was saved`)
  else if (suspend.isServed === true)
    fail('suspended-wrong', `suspendedCheckpoint returns '${named}', which was restored`)
}

function isOfSuspend(context, name) {
  const { suspend } = context.known
  return suspend !== undefined && generationOf(context, name) === suspend.generation
}

/**
 * The files of a suspended VM that still have any of its bytes, after its bhyve has ended. All three files, once they
 * were flushed.
 */
export function survivorsIn({ known: { suspend }, generations, cut, tree, digest }) {
  const { inodes, durableFrom, ...parts } = generations[suspend?.generation] ?? {}
  if (inodes === undefined || !suspend.hasEnded) return []
  return Object.entries(inodes).flatMap(([part, id]) => {
    const file = tree.find((one) => one.id === id)
    if (file?.data.some((byte) => byte !== 0)) return [{ part, where: file.path, digest: digest(file.data) }]
    return cut < durableFrom ? [] : [{ part, where: 'on disk', digest: parts[part] }]
  })
}

/** Each survivor must be found under a listed name, unchanged. */
function checkSurvivors(context) {
  const { observed, fail } = context
  const listed = (observed.listed.value ?? []).map(({ name }) => name)
  for (const { part, where, digest } of context.survivors ?? survivorsIn(context)) {
    if (listed.some((name) => digestAt(context, name + suffixes[part]) === digest)) continue
    fail('state-gone', `the ${part} file of the suspended VM was at '${where}' and is gone`)
  }
}

function checkStrays({ observed, foreign, fail }) {
  const names = new Set((observed.listed.value ?? []).map(({ name }) => name))
  for (const { file, isDirectory, nlink } of observed.files) {
    const name = file.slice('vm1/'.length)
    if (file === 'vm1' || (isDirectory && name === '.staging') || isOfDisks(name)) continue
    if (name.startsWith('.staging/')) {
      if (name !== '.staging/restore.lock') fail('left-in-staging', name)
      continue
    }
    // Other remains of a VM that is gone.
    if (names.has(/^(.*)\.ckp\.rest(\/|$)/.exec(name)?.[1])) continue
    if (nlink > 1) fail('two-names', `'${name}' has ${nlink} links`)
    const companion = /^(.*)\.ckp(\.kern|\.meta|\.manifest)?$/.exec(name)
    if (companion !== null && !names.has(companion[1])) fail('companion-alone', name)
    if (companion === null && !['notes.txt', 'restore.log'].includes(name)) fail('stray', name)
  }
  const kept = observed.files.find(({ file }) => file === foreign?.path)?.digest
  if (foreign !== undefined && kept !== foreign.digest) fail('foreign-touched', foreign.path)
}
