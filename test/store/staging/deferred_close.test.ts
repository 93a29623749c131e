/** Tests of which directories a job keeps open for its caller: removed ones only. */
import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { hostFacts } from '../../../dist/checkpoint/host.js'
import { newManifest } from '../../../dist/checkpoint/manifest.js'
import { loadNative } from '../../../dist/base/native.js'
import { jobs } from '../../../dist/worker/jobs.js'
import { beginHolding, takeHeld } from '../../../dist/store/staging/deferred_close.js'
// @ts-expect-error: a plain module, shared with programs that are not TypeScript
import { writeSet as writeAnySet } from '../../crash/sets.mjs'
import { scratch } from '../../support/index.js'

const writeSet = writeAnySet as (base: string, tag: number) => void
const native = loadNative()
const name = 'checkpoint'
beginHolding()

interface Staged {
  handle: { directoryPath: string; directory: number; stage: number; id: string }
  publication: Parameters<typeof jobs.commitStage>[1]
  path: string
  close: () => void
}

/** Makes a stage with a complete checkpoint that can be committed. */
function staged(directory: string): Staged {
  const request = { directory, name, ifExists: 'replace', durable: true } as const
  const made = jobs.createStage({ ...request, writerUid: process.geteuid!(), memoryBytes: undefined })
  const { in: inbox, ...kept } = made.descriptors
  native.close(inbox)
  writeSet(path.join(path.dirname(made.requestPath), 'ckp'), 1)
  const handle = { directoryPath: directory, ...kept, id: made.id }
  const { inspection, savedMs } = jobs.collectStage(handle, name)
  const facts = { vm: 'vm1', name, createdAt: new Date(savedMs), dialect: 'path', poweredOff: false } as const
  const manifest = newManifest({ ...facts, host: hostFacts() }, inspection)
  const publication = { name, ifExists: 'replace', durable: true, manifest } as const
  jobs.prepareStage(handle, publication)
  assert.equal(closeHeld(), 1, 'the inbox')
  const close = (): void => Object.values(kept).forEach((descriptor) => native.close(descriptor))
  return { handle, publication, path: path.join(directory, '.staging', made.id), close }
}

/** Closes the held descriptors and returns their number. */
function closeHeld(): number {
  const held = takeHeld()
  for (const descriptor of held) native.close(descriptor)
  return held.length
}

const store = (t: Test): string => path.join(scratch(t), 'vm1')

t.test('a published or abandoned stage is held open until its owner has closed it', async (t) => {
  const directory = store(t)
  const published = staged(directory)
  jobs.commitStage(published.handle, published.publication)
  published.close()
  t.equal(closeHeld(), 1, 'published')
  const abandoned = staged(directory)
  jobs.abandonStage(abandoned.handle, [])
  abandoned.close()
  t.equal(closeHeld(), 1, 'abandoned')
  t.equal(native.ownedDescriptors(), 0)
})

t.test('a stage that still exists is not held open', async (t) => {
  const directory = store(t)
  const { handle, publication, path: stage, close } = staged(directory)
  fs.truncateSync(path.join(stage, `${name}.ckp`), 1)
  t.throws(() => jobs.commitStage(handle, publication), { code: 'ERR_CHECKPOINT_DAMAGED' })
  close()
  t.ok(fs.existsSync(stage), 'the stage still exists')
  // In the same turn of the event loop. A descriptor that is still held would make the stage count as live.
  t.same(jobs.listCheckpoints(directory, 'vm1'), [])
  t.notOk(fs.existsSync(stage), 'the next call removes the stage')
  t.equal(closeHeld(), 0)
})
