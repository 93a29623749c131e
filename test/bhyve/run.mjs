// `npm run test:bhyve`: creates, lists, verifies and destroys checkpoints of a real VM. It needs a FreeBSD host whose
// bhyve and kernel were built with BHYVE_SNAPSHOT. The VM keeps running, but its guest is frozen while its RAM is
// saved, and the VM is paused once.
//
//   BHYVE_CHECKPOINT_TEST_VM=vm1 npm run test:bhyve
//
// BHYVE_CHECKPOINT_TEST_DIRECTORY      where the test creates its directory. It needs free space for twice the RAM of
//                                      the VM. The directory is removed at the end. Default: the system's temporary
//                                      directory
// BHYVE_CHECKPOINT_TEST_RUN_DIRECTORY  the run directory of bhyve. Default: /var/run/bhyve
// BHYVE_CHECKPOINT_TEST_SUSPEND_ARGS   the bhyve arguments of the VM as JSON, without -r, the VM name last:
//                                      ["-c","2","-m","4G",...,"vm1"]. If they are given, the VM is also suspended
//                                      (powered off) and restored
import assert from 'node:assert/strict'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { createClient } from 'bhyve-checkpoint'

const { env } = process
const vm = env.BHYVE_CHECKPOINT_TEST_VM
if (!vm) {
  console.error(
    'BHYVE_CHECKPOINT_TEST_VM is not set. Give it the name of a running VM of this host that can be frozen for a moment',
  )
  process.exit(2)
}
const suspendArguments = argumentsFrom(env.BHYVE_CHECKPOINT_TEST_SUSPEND_ARGS)
const directory = fs.mkdtempSync(
  path.join(env.BHYVE_CHECKPOINT_TEST_DIRECTORY ?? os.tmpdir(), 'bhyve-checkpoint-test-'),
)
const client = createClient({
  checkpointDirectory: directory,
  runDirectory: env.BHYVE_CHECKPOINT_TEST_RUN_DIRECTORY,
})

const steps = [
  ['the VM is listed', isListed],
  ['a checkpoint is created', create],
  ['the checkpoint is listed, read and verified', readBack],
  ['the checkpoint is replaced; until then the old one stays', replace],
  ["ifExists 'fail' keeps an existing checkpoint", keepExisting],
  ['a cancelled call leaves the VM and the old checkpoint unchanged', cancel],
  ['the VM is paused and continued', pauseAndResume],
  ['prune keeps a pinned checkpoint', prune],
  ['the checkpoints are destroyed and nothing is left', destroy],
  ...(suspendArguments === undefined ? [] : [['the VM is suspended and restored', suspendAndRestore]]),
]

process.exitCode = 1
try {
  for (const [what, step] of steps) {
    const startedAt = performance.now()
    await step()
    console.log(`ok: ${what} (${Math.round(performance.now() - startedAt)} ms)`)
  }
  if (suspendArguments === undefined)
    console.log('not run: suspend and restore (BHYVE_CHECKPOINT_TEST_SUSPEND_ARGS is not set)')
  console.log(`${steps.length} passed on VM '${vm}', ${os.type()} ${os.release()} ${os.arch()}`)
  process.exitCode = 0
} finally {
  await cleanUp()
}

async function isListed() {
  const found = (await client.listVirtualMachines()).find((one) => one.vm === vm)
  assert.ok(found, `VM '${vm}' has no checkpoint socket. Check that bhyve was built with BHYVE_SNAPSHOT`)
  // The state of a VM of dialect `struct` cannot be determined without harm.
  assert.ok(['running', 'unknown'].includes(found.state), `VM '${vm}' is ${found.state}`)
}

async function create() {
  const phases = new Set()
  const checkpoint = await client.createCheckpoint(vm, {
    name: 'first',
    onProgress: ({ phase }) => phases.add(phase),
  })
  assert.equal(fs.statSync(checkpoint.path).size, checkpoint.memoryBytes)
  assert.ok(checkpoint.memoryBytes > 0 && checkpoint.cpus > 0 && checkpoint.devices.length > 0)
  for (const phase of ['saving', 'checking', 'publishing']) assert.ok(phases.has(phase), phase)
}

async function readBack() {
  const [listed, ...others] = await client.listCheckpoints(vm)
  assert.deepEqual([listed.name, listed.state, others.length], ['first', 'complete', 0])
  assert.equal((await client.getCheckpoint(vm, 'first')).path, listed.path)
  const report = await client.verifyCheckpoint(vm, 'first')
  assert.ok(report.ok, JSON.stringify(report.problems))
  assert.deepEqual(await client.listStored(), [vm])
}

async function replace() {
  const before = await client.getCheckpoint(vm, 'first')
  let oldExists = true
  const onProgress = ({ phase }) => (oldExists &&= phase !== 'saving' || fs.existsSync(before.path))
  const after = await client.createCheckpoint(vm, { name: 'first', onProgress })
  assert.ok(oldExists && after.createdAt > before.createdAt)
}

async function keepExisting() {
  const call = client.createCheckpoint(vm, { name: 'first', ifExists: 'fail' })
  await assert.rejects(call, { code: 'ERR_CHECKPOINT_EXISTS' })
}

async function cancel() {
  const controller = new AbortController()
  const onProgress = ({ phase }) => phase === 'saving' && controller.abort()
  const call = client.createCheckpoint(vm, { name: 'first', signal: controller.signal, onProgress })
  await assert.rejects(call, { code: 'ABORT_ERR' })
  await client.idle()
  assert.equal((await client.getCheckpoint(vm, 'first')).name, 'first')
  await isListed()
}

async function pauseAndResume() {
  const state = async () => (await client.listVirtualMachines()).find((one) => one.vm === vm)?.state
  const before = await state()
  await client.pause(vm)
  try {
    assert.equal(await state(), before === 'running' ? 'paused' : before)
    await assert.rejects(client.createCheckpoint(vm), { code: 'ERR_VM_PAUSED' })
  } finally {
    await client.resume(vm)
  }
  assert.equal(await state(), before)
}

async function prune() {
  await client.pinCheckpoint(vm, 'first')
  await client.createCheckpoint(vm, { name: 'second' })
  const pruned = await client.pruneCheckpoints(vm, { keepLast: 1 })
  assert.deepEqual([pruned.removed, pruned.kept.toSorted()], [[], ['first', 'second']])
  await client.pinCheckpoint(vm, 'first', false)
  assert.deepEqual((await client.pruneCheckpoints(vm, { keepLast: 1 })).removed, ['first'])
}

async function destroy() {
  await client.destroyCheckpoint(vm, 'second')
  await client.createCheckpoint(vm)
  assert.deepEqual(await client.destroyAll(vm), ['checkpoint'])
  assert.deepEqual(await client.listCheckpoints(vm), [])
}

/** If the restore fails, the suspended state stays on disk, because it is the only state of the VM. */
async function suspendAndRestore() {
  assert.equal(typeof client.suspend, 'function', 'this version of the library cannot suspend')
  const suspended = await client.suspend(vm)
  assert.equal(suspended.poweredOff, true)
  const { pid } = await client.restore(vm, suspended.name, { args: suspendArguments })
  console.log(`    restored as process ${pid}`)
  await isListed()
  await client.createCheckpoint(vm, { name: 'after' })
  await client.destroyAll(vm)
}

async function cleanUp() {
  await client.idle()
  const left = await client.listCheckpoints(vm)
  const suspended = left.filter(({ poweredOff, restoredAt }) => poweredOff && restoredAt === undefined)
  if (suspended.length > 0) {
    console.error(`Kept the only state of VM '${vm}': ${suspended.map((one) => one.path).join(', ')}`)
    return
  }
  fs.rmSync(directory, { recursive: true, force: true })
}

function argumentsFrom(json) {
  if (json === undefined || json === '') return undefined
  const args = JSON.parse(json)
  assert.ok(
    Array.isArray(args) && args.every((argument) => typeof argument === 'string') && args.at(-1) === vm,
    'BHYVE_CHECKPOINT_TEST_SUSPEND_ARGS must be a JSON array of strings that ends with the VM name',
  )
  return args
}
