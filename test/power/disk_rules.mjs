// The rules for disk snapshots: a checkpoint that lists disks has them, of its own moment, and no other snapshot is left.
import { digestAt, generationOf } from './generations.mjs'

const disksName = '.disks'

export function isOfDisks(name) {
  return name === disksName || name.startsWith(`${disksName}/`)
}

export function isSnapshotMissing({ problems }) {
  return problems.includes('disk-snapshot-missing')
}

export function checkDisks(context) {
  for (const set of context.observed.listed.value) if (set.state === 'complete') checkComplete(context, set)
  checkLeft(context)
}

function checkComplete(context, { name, disks }) {
  const { known, generations, observed, fail } = context
  const generation = generationOf(context, name)
  if (generation === undefined) return // 'complete-but-wrong'
  const possible = possibleOf(known, name, generation)
  const listsDisks = disks.length > 0
  if (!possible.has(listsDisks))
    fail('disks-listed', `'${name}' is ${generation} and ${listsDisks ? 'lists' : 'does not list'} disks`)
  if (isSnapshotMissing(observed.details.get(name).verified))
    fail('snapshot-missing', `verification of '${name}' reports disk-snapshot-missing`)
  for (const snapshot of disks) {
    const digest = digestAt(context, snapshot)
    if (digest === generations[generation].disk) continue
    const what = digest === undefined ? 'does not exist' : 'has not the content of that moment'
    fail('snapshot-wrong', `'${name}' is ${generation}, and its snapshot '${snapshot}' ${what}`)
  }
}

/** A live checkpoint that was kept under another name can have lost its disks: it was never published with them. */
function possibleOf(known, name, generation) {
  const possible = known.listsDisks.get(generation) ?? new Set([false])
  return known.names.has(name) ? possible : new Set([...possible, false])
}

function checkLeft({ observed, fail }) {
  const listed = new Set([disksName])
  for (const snapshot of observed.listed.value.flatMap(({ disks }) => disks)) {
    listed.add(snapshot)
    listed.add(snapshot.slice(0, snapshot.lastIndexOf('/')))
  }
  for (const { file, nlink, size } of observed.files) {
    const name = file.slice('vm1/'.length)
    // The next capture removes an empty probe. It needs no record, because it contains nothing.
    if (!isOfDisks(name) || (size === 0 && name.startsWith(`${disksName}/probe-`))) continue
    if (!listed.has(name)) fail('snapshot-left', name)
    if (nlink > 1) fail('two-names', `'${name}' has ${nlink} links`)
  }
}
