// Chooses states. A state is an operation, a model, a cut (the step before which the power fails) and a choice. Its id
// contains all of them: `create:soft:57:3.9:12=zero,14=cut4096~:last`.
import { generator } from '../support/random.mjs'

export function formatState({ operation, model, cut, lost, fates, keeps }) {
  const pieces = [...lost].map(({ id }) => id).join('.')
  const files = [...fates].map(([id, fate]) => `${id}=${fate}`).join(',')
  return [operation, model, cut, pieces || '-', files || '-', keeps].join(':')
}

/** `diskFor(operation, model)` returns a Disk. */
export function parseState(id, diskFor) {
  const [operation, model, cut, pieces, files, keeps] = id.split(':')
  const disk = diskFor(operation, model)
  const lost = pieces === '-' ? [] : pieces.split('.').map((piece) => disk.pieces[Number(piece)])
  const fates = files === '-' ? [] : files.split(',').map((file) => file.split('='))
  const choice = {
    lost: new Set(lost),
    fates: new Map(fates.map(([file, fate]) => [Number(file), fate])),
    keeps,
  }
  return { operation, model, cut: Number(cut), ...choice }
}

/**
 * The extremes at a cut: all changes that were not flushed are lost; none is lost; only the data are lost, and the
 * files have zeros or their old content.
 */
export function extremesAt(disk, operation, cut) {
  const { pieces, files } = disk.pendingAt(cut)
  const all = (fate) => new Map(files.map(({ id }) => [id, fate]))
  const nothing = new Set()
  const choices = [
    { lost: new Set(pieces), fates: all('lost') },
    { lost: nothing, fates: new Map() },
    { lost: nothing, fates: all('zero') },
    { lost: nothing, fates: all('lost') },
  ]
  const removals = new Set(pieces.filter(({ kind }) => kind === 'remove'))
  if (disk.model === 'soft' && removals.size > 0) choices.push({ lost: removals, fates: new Map() })
  const keeps = disk.model === 'soft' ? ['last', 'first'] : ['last']
  return choices.flatMap((choice) =>
    keeps.map((name) => ({ operation, model: disk.model, cut, ...choice, keeps: name })),
  )
}

/** A third of the states lacks only one change, because that is enough for most bugs. */
export function randomAt(disk, operation, cut, random) {
  const { pieces, files } = disk.pendingAt(cut)
  const keeps = disk.model === 'soft' && random() < 0.5 ? 'first' : 'last'
  const place = { operation, model: disk.model, cut, keeps }
  if (random() < 0.35) return { ...place, ...oneThing(disk, pieces, files, cut, random) }
  const fates = files
    .map((file) => [file.id, fateOf(file, cut, random)])
    .filter(([, fate]) => fate !== 'keep')
  return { ...place, lost: lostOf(disk, pieces, random), fates: new Map(fates) }
}

function oneThing(disk, pieces, files, cut, random) {
  const at = Math.floor(random() * (pieces.length + files.length))
  if (at < pieces.length) return { lost: disk.closed([pieces[at]], pieces), fates: new Map() }
  const file = files[at - pieces.length]
  return { lost: new Set(), fates: new Map(file === undefined ? [] : [[file.id, fateOf(file, cut, random)]]) }
}

function lostOf(disk, pieces, random) {
  if (disk.model === 'journal') return new Set(pieces.slice(Math.floor(random() * (pieces.length + 1))))
  const likely = [0.1, 0.5, 0.9][Math.floor(random() * 3)]
  const lost = pieces.filter(() => random() < likely)
  return disk.closed(lost, pieces)
}

function fateOf(inode, cut, random) {
  const size = inode.contents[inode.countAt(cut)].length
  const time = random() < 0.3 ? '~' : ''
  const choice = random()
  if (choice < 0.25) return time === '' ? 'keep' : 'keep~'
  if (choice < 0.45) return 'lost'
  if (choice < 0.65) return `zero${time}`
  if (choice < 0.85 && size > 0) return `cut${Math.floor(random() * size)}${time}`
  return `part${Math.floor(random() * 1e6)}${time}`
}

/** Random states of all operations, models and cuts; the same ones for the same seed and recordings. */
export function* randomStates(seed, count, operations, models, diskFor) {
  const random = generator(seed)
  const pick = (list) => list[Math.floor(random() * list.length)]
  for (let i = 0; i < count; i++) {
    const operation = pick(operations)
    const disk = diskFor(operation, pick(models))
    const cut = Math.floor(random() * (disk.history.steps.length + 1))
    yield randomAt(disk, operation, cut, random)
  }
}
