/** Calls about all VMs: listAllCheckpoints and pruneAll. */
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { AbortError, type CheckpointClient, createClient, type ListedCheckpoint } from 'bhyve-checkpoint'
import { createClientIn } from '../../dist/client/client.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { checkpointFiles, inlinePool, scratch } from '../support/index.js'
import { store } from '../support/stored.js'

/** A store in which each VM has the same checkpoints. */
function fleet(
  t: Test,
  vms: readonly string[],
  names: readonly string[],
): { client: CheckpointClient; root: string } {
  const { directory, put } = store(t)
  for (const [index, name] of names.entries()) put(name, (names.length - index) * 1000)
  const root = scratch(t)
  for (const vm of vms)
    fs.cpSync(directory, path.join(root, vm), { recursive: true, preserveTimestamps: true })
  return { client: createClient({ checkpointDirectory: root }), root }
}

async function all(
  checkpoints: AsyncIterable<ListedCheckpoint>,
): Promise<{ found: string[]; error?: unknown }> {
  const found: string[] = []
  try {
    for await (const { vm, name } of checkpoints) found.push(`${vm}/${name}`)
    return { found }
  } catch (error) {
    return { found, error }
  }
}

t.test('listAllCheckpoints: yields VM by VM, sorted, and oldest first within a VM', async (t) => {
  const { client, root } = fleet(t, ['vm10', 'vm2', 'a'], ['z', 'b'])
  fs.mkdirSync(path.join(root, 'empty'))
  const expected = ['a/z', 'a/b', 'vm10/z', 'vm10/b', 'vm2/z', 'vm2/b']
  t.strictSame(await all(client.listAllCheckpoints()), { found: expected })
  for (const vm of ['a', 'vm10', 'vm2'])
    for await (const one of client.listAllCheckpoints())
      if (one.vm === vm) t.ok((await client.listCheckpoints(vm)).some(({ name }) => name === one.name))
  const none = createClient({ checkpointDirectory: path.join(root, 'none') })
  t.strictSame(await all(none.listAllCheckpoints()), { found: [] })
  t.throws(() => client.listAllCheckpoints({ sginal: 1 } as object), { code: 'ERR_INVALID_OPTION' })
})

t.test('listAllCheckpoints: a VM that cannot be listed does not hide the others', async (t) => {
  const { root } = fleet(t, ['a', 'b', 'c', 'd'], ['one'])
  const spoil = (vm: string): void => {
    fs.rmSync(path.join(root, vm), { recursive: true })
    fs.symlinkSync(root, path.join(root, vm))
  }
  const layout = {
    directoryOf: (vm: string) => path.join(root, vm),
    vms: () => Promise.resolve(['d', 'c', 'b', 'a']),
  }
  const linked = createClient({ checkpointDirectory: layout })
  spoil('b')
  const one = await all(linked.listAllCheckpoints())
  t.strictSame(one.found, ['a/one', 'c/one', 'd/one'])
  t.match(one.error, { name: 'CheckpointError', code: 'ERR_SYSTEM', vm: 'b' })
  spoil('c')
  const two = await all(linked.listAllCheckpoints())
  t.strictSame(two.found, ['a/one', 'd/one'])
  t.match(two.error, {
    code: 'ERR_SYSTEM',
    message: /^2 VMs could not be listed\. VM 'b': .*; VM 'c': /,
    cause: { errors: [{ vm: 'b' }, { vm: 'c' }] },
  })
  const pruned = await linked.pruneAll({ keepLast: 1 })
  t.match(pruned, [
    { vm: 'a', removed: [], kept: ['one'] },
    { vm: 'b', removed: [], kept: [], error: { code: 'ERR_SYSTEM', vm: 'b' } },
    { vm: 'c', error: { code: 'ERR_SYSTEM' } },
    { vm: 'd', kept: ['one'] },
  ])
  t.notOk('error' in pruned[0]!)
})

t.test('listAllCheckpoints: reads at most three directories ahead, and obeys its signal', async (t) => {
  const vms = Array.from({ length: 12 }, (_, index) => `vm${index + 10}`)
  const { root } = fleet(t, vms, ['one'])
  const jobs = inlinePool()
  let begun = 0
  const run: typeof jobs.run = (job, onStart) => {
    if (job.name === 'listCheckpoints') begun++
    return jobs.run(job, onStart)
  }
  const pool = { ...jobs, run }
  const client = createClientIn({ ...hostEnvironment, pool: () => pool }, { checkpointDirectory: root })
  let consumed = 0
  for await (const { vm } of client.listAllCheckpoints()) {
    t.equal(vm, vms[consumed++])
    t.ok(begun <= consumed + 3, `${begun} begun, ${consumed} consumed`)
  }
  t.equal(begun, vms.length)
  begun = 0
  for await (const _ of client.listAllCheckpoints()) break
  await client.idle()
  t.ok(begun <= 4, 'an iteration that was left reads no further')
  const controller = new AbortController()
  const seen: string[] = []
  const error: unknown = await (async () => {
    for await (const { vm } of client.listAllCheckpoints({ signal: controller.signal })) {
      seen.push(vm)
      if (seen.length === 2) controller.abort()
    }
  })().catch((e: unknown) => e)
  t.ok(error instanceof AbortError)
  t.strictSame(seen, vms.slice(0, 2))
  await client.idle()
  t.same(client.inFlight(), [])
})

t.test('pruneAll: applies the policy to each VM', async (t) => {
  const { client, root } = fleet(t, ['a', 'b'], ['one', 'two', 'three'])
  await client.pinCheckpoint('b', 'one')
  fs.mkdirSync(path.join(root, 'empty'))
  const policy = { keepLast: 1, namePrefix: 't' }
  const dry = await client.pruneAll({ ...policy, dryRun: true })
  t.match(dry, [
    { vm: 'a', removed: ['two'], kept: ['one', 'three'] },
    { vm: 'b', removed: ['two'], kept: ['one', 'three'] },
  ])
  t.equal(dry.length, 2)
  t.equal(checkpointFiles(path.join(root, 'a')).length, 9)
  t.strictSame(await client.pruneAll(policy), dry)
  t.match(await client.pruneAll({ keepLast: 0 }), [
    { removed: ['one'] },
    { removed: [], kept: ['one', 'three'] },
  ])
  t.ok(dry.every(({ freedBytes }) => freedBytes > 0))
})
