// A provider of disk snapshots that copies regular files. It appends each call to a log, so that a test can read the
// calls of a process that was killed.
import fs from 'node:fs'

/** Kills this process in a rollback. `at`: how many disks are back by then. */
export function copyingDisks(
  log,
  { kind = 'copy', killAt, without = [], fail = {}, onCall = () => undefined } = {},
) {
  let back = 0
  const each = (record, work) => record.disks.map(({ path, snapshot }) => work(path, snapshot))
  const killIfDue = () => {
    if (back === killAt) process.kill(process.pid, 'SIGKILL')
  }
  const called = async (call, details) => {
    fs.appendFileSync(log, `${JSON.stringify({ call, ...details })}\n`)
    await onCall(call)
    if (fail[call] !== undefined) throw new Error(fail[call])
  }
  const provider = {
    kind,
    prepare: () => Promise.reject(new Error('not used')),
    remove: () => Promise.resolve(),
    missing: async (record) =>
      record.disks.map(({ snapshot }) => snapshot).filter((snapshot) => !fs.existsSync(snapshot)),
    shared: async (record) => record.shared ?? [],
    rollback: async (record, { id }, owner) => {
      killIfDue()
      await called('rollback', { id, owner, paths: each(record, (path) => path) })
      const kept = each(record, (path, snapshot) => putBack(path, snapshot, `${path}.${id}`))
      back++
      killIfDue()
      return kept
    },
    clonePaths: async (record, { as }) => new Map(each(record, (path) => [path, `${path}.${as}`])),
    clone: async (record, { as }, owner) => {
      await called('clone', { as, owner })
      const made = each(record, (path, snapshot) => {
        fs.copyFileSync(snapshot, `${path}.${as}`, fs.constants.COPYFILE_EXCL)
        return [path, `${path}.${as}`]
      })
      return new Map(made)
    },
    removeClones: async (record, { as }) => {
      await called('removeClones', { as })
      each(record, (path) => fs.rmSync(`${path}.${as}`))
    },
  }
  return Object.fromEntries(Object.entries(provider).filter(([name]) => !without.includes(name)))
}

function putBack(path, snapshot, kept) {
  if (!fs.existsSync(kept)) fs.renameSync(path, kept)
  fs.copyFileSync(snapshot, `${path}.new`)
  fs.renameSync(`${path}.new`, path)
  return kept
}

export function callsIn(log) {
  const text = fs.existsSync(log) ? fs.readFileSync(log, 'utf8') : ''
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line))
}
