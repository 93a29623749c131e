// A host program with few descriptors, to be run under `ulimit -n`. Prints the results as JSON. Usage:
// few-descriptors.mjs <run directory> <checkpoint directory> <number of VMs> <what> `what` is `create`, `mix` (suspends
// every other VM) or `hungry`. With `hungry`, the program suspends its only VM. While bhyve writes, the program opens
// files until no descriptor is free.
import fs from 'node:fs'
import { createRequire } from 'node:module'

// An import opens many files at the same time, require() one after the other.
const require = createRequire(import.meta.url)
const { createClientIn } = require('../../dist/client/client.js')
const { hostEnvironment } = require('../../dist/client/environment.js')
const [runDirectory, checkpointDirectory, count, what] = process.argv.slice(2)
// Do not wait for the end of bhyve: the process of a simulated fleet continues to run after the suspend of a VM.
const environment = { ...hostEnvironment, exitTimeoutMs: 1 }
const client = createClientIn(environment, { runDirectory, checkpointDirectory, dialect: 'descriptor' })
const vms = Array.from({ length: Number(count) }, (_, index) => `vm${index}`)
const taken = []

const results = await Promise.allSettled(vms.map(save))
for (const descriptor of taken.splice(0)) fs.closeSync(descriptor)
await client.idle()
const listed = await Promise.all(vms.map((vm) => client.listCheckpoints(vm)))
console.log(
  JSON.stringify({
    failed: results.flatMap(({ reason }) =>
      reason === undefined || isSaved(reason) ? [] : [textOf(reason)],
    ),
    complete: listed.filter(([one]) => one?.state === 'complete').length,
  }),
)

function save(vm, index) {
  if (what === 'hungry')
    return client.suspend(vm, { onProgress: ({ phase }) => phase === 'saving' && takeAll() })
  return what === 'mix' && index % 2 === 1 ? client.suspend(vm) : client.createCheckpoint(vm)
}

function isSaved({ code, message }) {
  return code === 'ERR_SUSPEND_FAILED' && message.includes('is saved completely')
}

function textOf({ code, errno, message }) {
  return `${code} ${errno}: ${message}`
}

function takeAll() {
  try {
    for (;;) taken.push(fs.openSync('/dev/null', 'r'))
  } catch {
    return
  }
}
