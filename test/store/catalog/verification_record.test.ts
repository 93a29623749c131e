/** Several verifications are recorded by one job. */
import path from 'node:path'
import t, { type Test } from 'tap'
import { Directory } from '../../../dist/fs/directory.js'
import { inspectCheckpoint } from '../../../dist/checkpoint/structure.js'
import { type Verification, recordVerifications } from '../../../dist/store/catalog/verification_record.js'
import { failure, intercept, scratch } from '../../support/index.js'
import { putSet } from '../../support/sets.js'

const id = '2f6f9a52-3c53-4c6e-9a3e-0a9d3f5e7b10'
const at = '2026-01-02T03:04:05.678Z'

function storeIn(t: Test, names: readonly string[]) {
  const where = path.join(scratch(t), 'vm1')
  for (const name of names) putSet(where, name, { manifest: { id } })
  const directory = Directory.openPath(where)
  t.teardown(() => directory[Symbol.dispose]())
  const inspect = (name: string) => inspectCheckpoint(directory, name)!
  const verification = (name: string, time: string | undefined): Verification => {
    return { name, identity: inspect(name).identity, at: time }
  }
  const record = (...verifications: Verification[]) => recordVerifications(where, 'vm1', verifications)
  const recorded = () => names.filter((name) => inspect(name).manifest?.verified !== undefined)
  return { where, verification, record, recorded }
}

t.test('a manifest that cannot be replaced does not prevent the other records', (t) => {
  const { verification, record, recorded } = storeIn(t, ['a', 'b', 'c'])
  record(verification('c', at))
  t.strictSame(recorded(), ['c'])
  const renamed: string[] = []
  intercept(t, 'renameAt', (_from, _name, _to, name) => {
    renamed.push(String(name))
    return name === 'b.ckp.manifest' ? failure('EPERM', 'renameat') : undefined
  })
  let syncs = 0
  intercept(t, 'sync', () => {
    if (renamed.length > 0) syncs++
    return undefined
  })
  record(verification('a', at), verification('b', at), verification('c', undefined))
  t.strictSame(
    renamed,
    ['a', 'b', 'c'].map((name) => `${name}.ckp.manifest`),
  )
  t.strictSame(recorded(), ['a'], 'c was found damaged')
  t.equal(syncs, 3, 'two more files, and the directory once')
  t.end()
})

t.test('the last verification of a checkpoint counts', (t) => {
  const { verification, record, recorded } = storeIn(t, ['a'])
  record(verification('a', at), verification('a', undefined))
  t.strictSame(recorded(), [])
  record(verification('a', undefined), verification('a', at))
  t.strictSame(recorded(), ['a'])
  t.end()
})

t.test('no .staging is made for checkpoints that are gone', (t) => {
  const { where, verification, record, recorded } = storeIn(t, ['a'])
  record({ ...verification('a', at), name: 'gone' })
  using directory = Directory.openPath(where)
  t.equal(directory.statusIfAny('.staging'), undefined)
  t.strictSame(recorded(), [])
  t.end()
})
