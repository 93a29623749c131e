// What a disk may show after a power failure, in three models. A model splits the changes of directories into pieces
// that survive or are lost. It defines which fsync flushes a piece and which other pieces a piece needs.
//
// - `journal` (ext4 with data=ordered or data=writeback, XFS): pieces survive as a prefix. An fsync commits
//   everything up to the last change of that inode, and no more: ext4 commits the transaction of that change, XFS
//   flushes its log up to it. Both often commit more (delayed allocation; ext4 commits everything for a directory).
//   The model does not rely on it.
// - `subset`: each piece survives independently, in any order. Only an fsync of its directory flushes it. A rename is
//   one piece, and an fsync of either directory flushes it. The pieces of one inode survive in their order.
// - `soft` (UFS with soft updates): a rename adds an entry and removes the old one later. Each of the two is flushed
//   by an fsync of its own directory only. An fsync of a file or directory also flushes the entries that lead to it,
//   but never the removal of an old one. No inode loses its last name before it has a new one. A directory is removed
//   after its entries. If a directory has two names, fsck_ffs removes one of them. All steps of an operation happen
//   within the 30 seconds for which soft updates may delay changes; everything before the operation is on disk.
//
// In all models a file that was not flushed has its old content, its new content, zeros where it was written, a part of
// its length, or some of its new pages. It has any of its times. sync_file_range() guarantees nothing and is ignored.
import { Buffer } from 'node:buffer'
import { keyOf } from './history.mjs'
import { generator } from '../support/random.mjs'

export const modelNames = ['journal', 'subset', 'soft']
const pageBytes = 4096

/** One model of one history. `without`: the step of an fsync to leave out. */
export class Disk {
  constructor(history, model, without) {
    this.history = history
    this.model = model
    this.syncs = history.syncs.filter(({ at }) => at !== without)
    this.without = without
    this.pieces = piecesOf(history, model)
    for (const [id, piece] of this.pieces.entries()) Object.assign(piece, { id, flushedAt: Infinity })
    for (const piece of this.pieces) piece.needs = needsOf(piece, this.pieces, model)
    for (const sync of this.syncs) this.#flush(sync)
  }

  #flush(sync) {
    const before = this.pieces.filter(({ at }) => at < sync.startedAt)
    const flushed = { journal: journalFlushes, subset: directoryFlushes, soft: softFlushes }[this.model]
    const seen = new Set()
    const mark = (piece) => {
      if (seen.has(piece)) return
      seen.add(piece)
      piece.flushedAt = Math.min(piece.flushedAt, sync.at)
      piece.needs.forEach(mark)
    }
    flushed(this, sync, before).forEach(mark)
  }

  /** Pieces and files that are not certain to be on disk if the power fails before step `cut`. */
  pendingAt(cut) {
    const pieces = this.pieces.filter(({ at, flushedAt }) => at < cut && flushedAt >= cut)
    const files = this.history.inodes.filter((inode) => !inode.isDirectory && this.isDirty(inode, cut))
    return { pieces, files }
  }

  isDirty(inode, cut) {
    return inode.countAt(cut) > this.coveredAt(inode, cut)
  }

  /** How many of a file's changes were flushed. */
  coveredAt(inode, cut) {
    const done = inode.syncs.filter(({ at }) => at < cut && at !== this.without)
    return done.reduce((most, { covered }) => Math.max(most, covered), 0)
  }

  /** Adds the pieces that need a lost one. */
  closed(lost, pending) {
    const gone = new Set(lost)
    for (const piece of pending) if (piece.needs.some((needed) => gone.has(needed))) gone.add(piece)
    return gone
  }

  /**
   * The tree that a choice leaves. `lost`: a set of pieces; `fates`: by file id; `keeps`: which of two names a
   * directory keeps. Names of one file have the same id.
   */
  treeAt(cut, { lost, fates, keeps }) {
    const entries = new Map(this.history.initialEntries)
    for (const piece of this.pieces) if (piece.at < cut && !lost.has(piece)) applyPiece(entries, piece)
    keepOneName(this.history, entries, keeps)
    const byDirectory = new Map()
    for (const [key, inode] of entries) {
      const slash = key.indexOf('/')
      const directory = Number(key.slice(0, slash))
      if (!byDirectory.has(directory)) byDirectory.set(directory, [])
      byDirectory.get(directory).push([key.slice(slash + 1), inode])
    }
    return this.#walk(byDirectory, { cut, fates }, this.history.top.id, '')
  }

  #walk(byDirectory, choice, directory, below) {
    return (byDirectory.get(directory) ?? []).flatMap(([name, id]) => {
      const inode = this.history.inodes[id]
      const path = below + name
      const { isDirectory, mode } = inode
      if (isDirectory)
        return [{ path, isDirectory, mode, id }, ...this.#walk(byDirectory, choice, id, `${path}/`)]
      return [
        { path, isDirectory, mode, id, ...this.fileAt(inode, choice.cut, choice.fates.get(id) ?? 'keep') },
      ]
    })
  }

  /** `fate`: keep, lost, zero, cut<bytes>, part<seed>; `~` at the end: an older mtime. */
  fileAt(inode, cut, fate) {
    const count = inode.countAt(cut)
    const covered = Math.min(this.coveredAt(inode, cut), count)
    const how = fate.replace('~', '')
    const mtime = fate === 'lost' ? inode.times[covered] : inode.times[count]
    return {
      data: contentOf(inode, covered, count, how),
      mtime: fate.endsWith('~') ? olderTime(inode, covered, count) : mtime,
    }
  }
}

function piecesOf({ units }, model) {
  if (model !== 'soft') return units.map((unit) => ({ ...unit }))
  return units.flatMap((unit) => {
    if (unit.kind !== 'move') return [{ ...unit }]
    const { at, inode, from, to } = unit
    const added = { at, inode, kind: 'add', to }
    return [added, { at, inode, kind: 'remove', from, added }]
  })
}

function needsOf(piece, pieces, model) {
  const earlier = pieces.slice(0, piece.id)
  if (model === 'journal') return earlier.slice(-1)
  if (model === 'subset') return earlier.filter(({ inode }) => inode === piece.inode).slice(-1)
  if (piece.kind !== 'remove') return []
  // A directory needs the removals of all its entries.
  const inside = earlier.filter(({ kind, from }) => kind === 'remove' && from.dir === piece.inode)
  return piece.added === undefined ? inside : [piece.added]
}

function touches({ inode, from, to }, id) {
  return inode === id || from?.dir === id || to?.dir === id
}

function journalFlushes(disk, { inode, startedAt }, before) {
  const { changes } = disk.history.inodes[inode]
  const changedAt = changes.findLast(({ at }) => at < startedAt)?.at ?? -1
  const last = before.findLast((piece) => piece.at < changedAt || touches(piece, inode))
  return last === undefined ? [] : [last]
}

function directoryFlushes(_disk, { inode }, before) {
  return before.filter(({ from, to }) => from?.dir === inode || to?.dir === inode)
}

function softFlushes(disk, { inode }, before) {
  const inside = before.filter(({ from, to }) => from?.dir === inode || to?.dir === inode)
  const present = new Map()
  for (const piece of before) {
    if (piece.to !== undefined) present.set(keyOf(piece.to), piece)
    else if (present.get(keyOf(piece.from))?.inode === piece.inode) present.delete(keyOf(piece.from))
  }
  const leading = []
  const lead = (id) => {
    for (const piece of present.values()) {
      if (piece.inode !== id || leading.includes(piece)) continue
      leading.push(piece)
      lead(piece.to.dir)
    }
  }
  lead(inode)
  return [...inside, ...leading]
}

function applyPiece(entries, { inode, from, to }) {
  if (from !== undefined && entries.get(keyOf(from)) === inode) entries.delete(keyOf(from))
  if (to !== undefined) entries.set(keyOf(to), inode)
}

function keepOneName({ inodes }, entries, keeps) {
  const names = new Map()
  for (const [key, id] of entries) if (inodes[id].isDirectory) names.set(id, [...(names.get(id) ?? []), key])
  for (const keys of names.values()) {
    if (keys.length < 2) continue
    const kept = keeps === 'first' ? keys[0] : keys.at(-1)
    for (const key of keys) if (key !== kept) entries.delete(key)
  }
}

/** Cached, so that the judge recognizes equal content. Partial contents are too many to cache. */
function contentOf(inode, covered, count, fate) {
  if (fate.startsWith('part')) return contentAfter(inode, covered, count, fate)
  inode.variants ??= new Map()
  const key = `${count} ${covered} ${fate}`
  if (!inode.variants.has(key)) inode.variants.set(key, contentAfter(inode, covered, count, fate))
  return inode.variants.get(key)
}

function contentAfter(inode, covered, count, fate) {
  const old = inode.contents[covered]
  const now = inode.contents[count]
  if (fate === 'keep') return now
  if (fate === 'lost') return old
  if (fate.startsWith('cut')) return now.subarray(0, Number(fate.slice(3)))
  const lasting = Buffer.alloc(now.length)
  old.copy(lasting)
  const chosen = generator(Number(fate.slice(4)))
  for (const { from, to } of inode.changes.slice(covered, count)) {
    for (let page = from; page < to; page = nextPage(page, to)) {
      const end = nextPage(page, to)
      if (fate === 'zero' || chosen() < 0.5) lasting.fill(0, page, end)
      else now.copy(lasting, page, page, end)
    }
  }
  return lasting
}

function nextPage(at, end) {
  return Math.min(end, (Math.floor(at / pageBytes) + 1) * pageBytes)
}

/** The mtime before the last utimes() call, or before all changes that were not flushed. */
function olderTime(inode, covered, count) {
  const isSet = inode.changes.slice(covered, count).some(({ kind }) => kind === 'time')
  const lastWrite = inode.changes.slice(0, count).findLastIndex(({ kind }) => kind !== 'time')
  return isSet && lastWrite >= covered ? inode.times[lastWrite + 1] : inode.times[covered]
}
