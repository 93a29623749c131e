// `npm run test:leaks [-- count]` runs very many operations, successes and every failure, in one process. Memory and
// descriptors must not grow after the first fifth. Prints a line for each tenth.
//
// Half of the operations run in the library's threads, as usual. V8 collects a thread's garbage at times of its own
// choice. Memory is therefore measured when these threads have ended, which idle threads do. The other half runs the
// same jobs on this thread, where garbage can be collected before measuring. A leak in JavaScript would be visible
// there.
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { SimulatedFleet } from 'bhyve-checkpoint/simulator'
import { createClientIn } from '../dist/client/client.js'
import { loadNative } from '../dist/base/native.js'
import { hostEnvironment } from '../dist/client/environment.js'
import { jobs } from '../dist/worker/jobs.js'

const count = Number(process.argv[2] ?? 20_000)
const lanes = 8
/** Longer than an idle thread of the library lives. */
const restMs = 2_500
/**
 * V8 and malloc keep and return memory at times of their own choice. Differences below these do not count as growth.
 */
const tolerated = { rss: 24 * 1024 * 1024, heapUsed: 1024 * 1024 }

setFlagsFromString('--expose-gc')
const collectGarbage = runInNewContext('gc')

const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'bc-leaks-'))
const vms = Array.from({ length: lanes }, (_, index) => `vm${index}`)
const fleets = {}
const start = async (name, options) =>
  (fleets[name] = await SimulatedFleet.start({ vms, memoryBytes: 16 * 1024, ...options }))
await start('well')
await start('answering', { dialect: 'reply' })
await start('older', { dialect: 'path' })
await start('oldest', { dialect: 'struct' })
for (const at of ['open', 'pause', 'memory', 'kernel', 'device', 'metadata'])
  await start(`failing at ${at}`, { fault: { at, kind: 'fail' } })
await start('full', { fault: { at: 'memory', kind: 'no-space' } })
await start('closing', { fault: { at: 'receive', kind: 'close' } })
await start('silent', { dialect: 'reply', fault: { at: 'reply', kind: 'close' } })
await start('slow', { memoryBytes: 64 * 1024, writeRate: 1024 * 1024 })

const onThisThread = {
  run: async ({ name, args }, onStart) => {
    onStart?.()
    return jobs[name](...args)
  },
  // A job has ended when its call returns.
  emptied: () => Promise.resolve(),
  takeNoted: () => false,
}
const environment = { threads: hostEnvironment, here: { ...hostEnvironment, pool: () => onThisThread } }

const dialects = { older: 'path', oldest: 'struct' }
const made = []
function clientOf(where, name, options = {}) {
  const client = createClientIn(environment[where], {
    runDirectory: fleets[name].runDirectory,
    checkpointDirectory: path.join(scratch, where, name),
    dialect: dialects[name] ?? 'descriptor',
    ...options,
  })
  made.push(client)
  return client
}

function clientsOf(where) {
  // In a root of its own, because a reservation that is refused still reduces the space of others for a moment.
  const cramped = clientOf(where, 'well', { checkpointDirectory: path.join(scratch, where, 'cramped') })
  const wary = clientOf(where, 'well', { trustedUids: [12345] })
  const nowhere = clientOf(where, 'well', { runDirectory: scratch })
  const each = Object.fromEntries(Object.keys(fleets).map((name) => [name, clientOf(where, name)]))
  return { where, cramped, wary, nowhere, ...each }
}

function damage({ where, well }, vm) {
  fs.writeFileSync(path.join(scratch, where, 'well', vm, 'damaged.ckp'), 'x')
  return well.getCheckpoint(vm, 'damaged')
}

function abort({ slow }, vm) {
  const controller = new AbortController()
  const onProgress = ({ phase }) => phase === 'saving' && controller.abort()
  return slow.createCheckpoint(vm, { signal: controller.signal, onProgress })
}

async function dispose({ where }, vm) {
  const client = clientOf(where, 'well')
  try {
    return await client.createCheckpoint(vm, { name: 'disposed' })
  } finally {
    await client[Symbol.asyncDispose]()
    made.pop()
  }
}

/** The operations with their expected result: `ok`, or the code of the rejection. */
const operations = [
  ['ok', ({ well }, vm) => well.createCheckpoint(vm)],
  ['ok', ({ well }, vm) => well.listCheckpoints(vm)],
  ['ok', ({ well }, vm) => well.verifyCheckpoint(vm, 'checkpoint')],
  ['ok', ({ well }, vm) => well.createCheckpoint(vm, { name: 'other', onProgress: () => undefined })],
  ['ok', ({ well }, vm) => well.pinCheckpoint(vm, 'other')],
  ['ok', ({ well }, vm) => well.pruneCheckpoints(vm, { keepLast: 1 })],
  ['ERR_CHECKPOINT_EXISTS', ({ well }, vm) => well.createCheckpoint(vm, { name: 'other', ifExists: 'fail' })],
  ['ok', ({ well }, vm) => well.destroyCheckpoint(vm, 'other')],
  ['ERR_CHECKPOINT_NOT_FOUND', ({ well }, vm) => well.getCheckpoint(vm, 'other')],
  ['ERR_CHECKPOINT_NOT_FOUND', ({ well }, vm) => well.destroyCheckpoint(vm, 'other')],
  ['ERR_CHECKPOINT_DAMAGED', damage],
  ['ok', ({ well }, vm) => well.destroyAll(vm)],
  ['ok', dispose],
  ['ok', ({ well }) => well.listVirtualMachines()],
  ['ok', ({ well }) => well.listStored()],
  ['ok', ({ answering }, vm) => answering.createCheckpoint(vm)],
  ['ok', ({ older }, vm) => older.createCheckpoint(vm)],
  ['ok', ({ oldest }, vm) => oldest.createCheckpoint(vm)],
  ['ok', ({ silent }, vm) => silent.createCheckpoint(vm)],
  ...Object.keys(fleets)
    .filter((name) => name.startsWith('failing') || name === 'full' || name === 'closing')
    .map((name) => ['ERR_CHECKPOINT_FAILED', (clients, vm) => clients[name].createCheckpoint(vm)]),
  ['ABORT_ERR', abort],
  ['ERR_TIMEOUT', ({ slow }, vm) => slow.createCheckpoint(vm, { timeout: 1 })],
  ['ABORT_ERR', ({ well }, vm) => well.createCheckpoint(vm, { signal: AbortSignal.abort() })],
  ['ERR_VM_NOT_RUNNING', ({ nowhere }, vm) => nowhere.createCheckpoint(vm)],
  ['ERR_INVALID_VM_NAME', ({ well }) => well.createCheckpoint('a/b')],
  ['ERR_INVALID_CHECKPOINT_NAME', ({ well }, vm) => well.getCheckpoint(vm, '..')],
  ['ERR_INVALID_OPTION', ({ well }, vm) => well.createCheckpoint(vm, { nonsense: 1 })],
  ['ERR_NO_SPACE', ({ cramped }, vm) => cramped.createCheckpoint(vm, { memoryBytes: 2 ** 52 })],
  ['ERR_UNTRUSTED_PEER', ({ wary }, vm) => wary.createCheckpoint(vm)],
  ['ERR_PATH_TOO_LONG', ({ well }, vm) => well.createCheckpoint(vm, { name: 'n'.repeat(240) })],
]

const clients = [clientsOf('threads'), clientsOf('here')]
const positions = vms.map(() => 0)
let next = 0
let unexpected = 0
const descriptors = () => fs.readdirSync('/dev/fd').length

/** Each lane has a VM of its own, and repeats all operations. */
async function runLane(lane, until) {
  while (next < until) {
    next++
    const [wanted, call] = operations[positions[lane]++ % operations.length]
    const outcome = await call(clients[lane % clients.length], vms[lane]).then(
      () => 'ok',
      (error) => error.code ?? String(error),
    )
    if (outcome === wanted) continue
    unexpected++
    if (unexpected <= 10) console.error(`expected ${wanted}, got ${outcome}: ${call}`)
  }
}

/** Measures when the library's threads have ended and no operation is running. */
async function sample() {
  for (const client of made) await client.idle()
  await new Promise((resolve) => setTimeout(resolve, restMs))
  collectGarbage()
  // Finalizers run in later turns.
  for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve))
  collectGarbage()
  const { rss, heapUsed } = process.memoryUsage()
  return { rss, heapUsed, descriptors: descriptors(), owned: loadNative().ownedDescriptors() }
}

const MiB = (bytes) => (bytes / 1024 / 1024).toFixed(1)
const samples = []
const steps = 10
for (let step = 1; step <= steps; step++) {
  const until = Math.round((count * step) / steps)
  await Promise.all(vms.map((_, lane) => runLane(lane, until)))
  const taken = await sample()
  samples.push(taken)
  const memory = `RSS ${MiB(taken.rss)} MiB, heap ${MiB(taken.heapUsed)} MiB`
  console.log(
    `${String(until).padStart(6)} operations: ${memory}, ${taken.descriptors} descriptors, ${taken.owned} of the addon`,
  )
}
for (const fleet of Object.values(fleets)) await fleet.stop()
fs.rmSync(scratch, { recursive: true, force: true })

const most = (list, key) => Math.max(...list.map((one) => one[key]))
const warm = samples.slice(steps / 5, (2 * steps) / 5)
const late = samples.slice((4 * steps) / 5)
const grown = (key) => most(late, key) - most(warm, key)
const faults = [
  ...(unexpected > 0 ? [`${unexpected} operations had an unexpected result`] : []),
  ...(grown('descriptors') > 0 ? ['descriptors leak'] : []),
  ...(most(late, 'owned') > 0 ? ['the addon keeps descriptors'] : []),
  ...Object.keys(tolerated)
    .filter((key) => grown(key) > tolerated[key])
    .map((key) => `memory grows: ${key} by ${MiB(grown(key))} MiB`),
]
for (const fault of faults) console.error(`FAILED: ${fault}`)
console.log(
  `leaks: ${count} operations, RSS ${MiB(grown('rss'))} MiB more, heap ${MiB(grown('heapUsed'))} MiB more, ${faults.length} faults`,
)
process.exit(faults.length === 0 ? 0 : 1)
