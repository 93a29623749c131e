/** The record of a move in a manifest: what it blocks, and what may still be done with such a copy. */
import { randomUUID } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { buffer } from 'node:stream/consumers'
import t, { type Test } from 'tap'
import { type MoveState } from 'bhyve-checkpoint'
import { jobs } from '../../dist/worker/jobs.js'
import { rejection } from '../support/index.js'
import { Move } from '../support/moving.js'
import { changeManifest, putSet } from '../support/sets.js'

const id = randomUUID()
const at = new Date().toISOString()
const host = 'other.example'

/** A host with the suspended state of `vm1`, which is part of a move. */
function moving(t: Test, state: MoveState): Move {
  const move = new Move(t)
  const manifest = { version: 3, poweredOff: true, move: { state, id, host, at } }
  putSet(move.a.directory, 'suspend', { manifest })
  return move
}

const blocked: Record<MoveState, string | undefined> = {
  arriving: 'move-pending',
  released: undefined,
  'not-started': 'move-pending',
  'moved-to': 'moved-away',
  moved: 'moved-away',
}

for (const state of ['arriving', 'released', 'not-started', 'moved-to', 'moved'] as const) {
  const isInDoubt = state === 'arriving' || state === 'moved-to'
  t.test(`${state}: what it blocks`, async (t) => {
    const move = moving(t, state)
    const { client, directory, bhyve } = move.a
    const moveBlockers = async (options = {}): Promise<string[]> => {
      const { blockers } = await client.planRestore('vm1', 'suspend', { args: move.args, bhyve, ...options })
      return blockers.map(({ code }) => code).filter((code) => code.startsWith('move'))
    }
    const expected = [blocked[state]].filter((code) => code !== undefined)
    t.strictSame(await moveBlockers(), expected)
    t.strictSame(await moveBlockers({ again: true }), expected, "'again' does not override it")
    t.strictSame(await moveBlockers({ as: 'vm2', disks: 'clone' }), expected, 'also for another VM')
    t.match(await client.listCheckpoints('vm1'), [{ move: { state, id, host } }])

    const suspended = client.suspendedCheckpoint('vm1')
    if (isInDoubt) t.match(await rejection(suspended), { code: 'ERR_MOVE_IN_DOUBT', vmState: 'unknown' })
    else t.equal((await suspended)?.name, state === 'released' ? 'suspend' : undefined)

    const { kept } = await client.pruneCheckpoints('vm1', { keepLast: 0, dryRun: true })
    t.strictSame(kept, state === 'moved' ? [] : ['suspend'], 'prune removes only what another host runs')

    const codes = (await client.diagnose()).map(({ code }) => code)
    const found = isInDoubt ? 'move-in-doubt' : state === 'released' ? 'state-suspended' : 'moved-away'
    t.ok(codes.includes(found), found)

    await client.pinCheckpoint('vm1', 'suspend')
    await client.labelCheckpoint('vm1', 'suspend', { a: 'b' })
    t.match(await client.getCheckpoint('vm1', 'suspend'), {
      pinned: true,
      labels: { a: 'b' },
      move: { state },
    })
    t.equal(move.a.manifest('suspend').version, 3, 'older releases cannot restore it')

    await t.rejects(buffer(client.exportCheckpoint('vm1', 'suspend')), {
      code: isInDoubt ? 'ERR_MOVE_IN_DOUBT' : 'ERR_INVALID_OPTION',
    })
    const archive = await buffer(client.exportCheckpoint('vm1', 'suspend', { copy: true }))
    t.notOk(archive.includes(id), 'a copy is not part of the move')
    const copy = await client.importCheckpoint(
      'vm2',
      undefined,
      (async function* () {
        yield archive
      })(),
    )
    t.equal(copy.move, undefined)

    const replaced = (): void => {
      const request = {
        directory,
        name: 'suspend',
        ifExists: 'replace',
        durable: true,
        writerUid: 0,
      } as const
      const { descriptors } = jobs.createStage({ ...request, memoryBytes: undefined })
      for (const descriptor of Object.values(descriptors)) fs.closeSync(descriptor)
    }
    if (!isInDoubt) {
      await client.destroyCheckpoint('vm1', 'suspend')
      return t.strictSame(await client.listCheckpoints('vm1'), [])
    }
    t.throws(replaced, { code: 'ERR_CHECKPOINT_EXISTS', message: /in doubt/ }, 'not replaced')
    for (const removal of [client.destroyCheckpoint('vm1', 'suspend'), client.destroyAll('vm1')])
      t.match(await rejection(removal), {
        code: 'ERR_MOVE_IN_DOUBT',
        message: /call moveVirtualMachine again/,
      })
    t.equal((await client.listCheckpoints('vm1')).length, 1)
  })
}

t.test('resolveMove: a person decides a move in doubt', async (t) => {
  const outcomes = [
    ['arriving', 'here', 'released'],
    ['arriving', 'elsewhere', 'not-started'],
    ['moved-to', 'here', undefined],
    ['moved-to', 'elsewhere', 'moved'],
  ] as const
  for (const [state, runs, then] of outcomes) {
    const move = moving(t, state)
    await move.a.client.resolveMove('vm1', 'suspend', { runs })
    t.equal(move.a.moveOf(), then, `${state}, ${runs}`)
    const again = await rejection(move.a.client.resolveMove('vm1', 'suspend', { runs }))
    t.equal(again.code, 'ERR_INVALID_OPTION', 'only once')
  }
})

t.test('a malformed record does not count as none', async (t) => {
  const move = moving(t, 'moved')
  for (const record of [
    {},
    'moved',
    null,
    { state: 'gone', id, host, at },
    { state: 'moved', id: '../x', host, at },
  ]) {
    changeManifest(move.a.directory, 'suspend', { move: record })
    t.match(await move.a.client.listCheckpoints('vm1'), [
      { state: 'damaged', problems: [{ code: 'manifest-invalid' }] },
    ])
  }
})

t.test('the steps of a move exclude a restore, and are repeatable', (t) => {
  const move = new Move(t)
  const { directory } = move.a
  putSet(directory, 'suspend', { manifest: { poweredOff: true } })
  const step = { directory, vm: 'vm1', name: 'suspend', id }
  const { identity } = jobs.inspectForRestore(directory, 'vm1', 'suspend')
  const restore = { at, again: false }
  jobs.commitMove(step, identity, host, at)
  jobs.commitMove(step, '', host, at)
  t.equal(
    jobs.recordRestore(directory, 'vm1', 'suspend', identity, restore),
    undefined,
    'no restore after the commit',
  )
  t.equal(jobs.holdUnrecorded(directory, 'suspend', identity), undefined)
  t.throws(() => jobs.commitMove({ ...step, id: randomUUID() }, identity, host, at), {
    code: 'ERR_CHECKPOINT_BUSY',
  })
  jobs.withdrawMove(step)
  t.equal(move.a.moveOf(), undefined)
  t.match(jobs.recordRestore(directory, 'vm1', 'suspend', identity, restore), restore)
  t.throws(
    () => jobs.commitMove(step, identity, host, at),
    { code: 'ERR_CHECKPOINT_BUSY' },
    'no commit after a restore',
  )
  t.end()
})

t.test('a release of an old id starts nothing', async (t) => {
  const move = moving(t, 'not-started')
  const { directory } = move.a
  const step = { directory, vm: 'vm1', name: 'suspend', id }
  t.match(jobs.releaseMove(step, at), { move: { state: 'not-started' } }, 'not-started is final')
  t.throws(() => jobs.releaseMove({ ...step, id: randomUUID() }, at), { code: 'ERR_CHECKPOINT_BUSY' })
  t.strictSame(jobs.discardCopies(directory, [{ id, state: 'arriving' }]), [], 'another state')
  t.strictSame(jobs.discardCopies(directory, [{ id, state: 'not-started' }]), ['suspend'])
  t.notOk(fs.existsSync(path.join(directory, 'suspend.ckp')))
  await move.a.client.idle()
})
