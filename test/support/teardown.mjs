// A program that ends in the middle of its calls. The argument is JSON: what the program does, and how and when it
// ends. The program prints `ending` before it ends.
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'

const endings = {
  /** Does nothing, so that the calls in progress finish. */
  finish: () => undefined,
  throw: () => {
    throw new Error('on purpose')
  },
  exit: () => process.exit(3),
  sigterm: () => {
    process.kill(process.pid, 'SIGTERM')
    // Keep the process alive until the signal arrives.
    setInterval(() => undefined, 1000)
  },
}

const settings = isMainThread ? JSON.parse(process.argv[2]) : workerData
const {
  operation,
  phase,
  ending,
  copies = 1,
  workers = 0,
  libraries,
  runDirectory,
  checkpointDirectory,
  vm,
} = settings

if (isMainThread && workers > 0) endWithWorkers()
else await endWithCalls(isMainThread ? end : () => parentPort.postMessage('now'))

function end() {
  console.log('ending')
  // Throw outside of the callback, because the library catches exceptions of callbacks.
  if (ending === 'throw') process.nextTick(endings.throw)
  else endings[ending]()
}

/** Makes the same call with one or more clients, from one or more copies of the library. */
async function endWithCalls(onPhase) {
  let reached = false
  const reach = () => {
    if (!reached) onPhase()
    reached = true
  }
  const calls = []
  for (let copy = 0; copy < copies; copy++) {
    const { createClient } = await load(libraries?.[copy])
    const client = createClient({ runDirectory, checkpointDirectory, dialect: 'descriptor' })
    calls.push(begin(client, `${vm}${copies > 1 ? copy + 1 : ''}`, reach))
  }
  if (operation !== 'create' && phase === 'begun') reach()
  const outcomes = await Promise.allSettled(calls)
  console.log(outcomes.map(({ status, reason }) => reason?.code ?? status).join(' '))
}

function load(directory) {
  if (directory === undefined) return import('bhyve-checkpoint')
  return import(pathToFileURL(path.join(directory, 'dist/index.js')).href)
}

function begin(client, name, reach) {
  const reachAfter = (call) => (phase === 'done' ? call.finally(reach) : call)
  if (operation === 'list') return reachAfter(client.listCheckpoints(name))
  if (operation === 'destroy') return reachAfter(client.destroyAll(name))
  return client.createCheckpoint(name, {
    name: 'new',
    onProgress: (progress) => progress.phase === phase && reach(),
  })
}

/** Waits until all Workers have reached the phase. Then terminates each of them, or ends the program. */
function endWithWorkers() {
  const started = Array.from({ length: workers }, (_, index) => {
    const worker = new Worker(new URL(import.meta.url), {
      workerData: { ...settings, vm: `${vm}${index + 1}` },
    })
    return {
      worker,
      ready: new Promise((resolve, reject) => worker.on('message', resolve).on('error', reject)),
    }
  })
  void Promise.all(started.map(({ ready }) => ready)).then(async () => {
    if (ending !== 'terminate') return end()
    console.log('ending')
    await Promise.all(started.map(({ worker }) => worker.terminate()))
    console.log('terminated')
  })
}
