// A host program with few descriptors: few-descriptors.mjs <run directory> <checkpoint directory> <VMs> <what>, under
// `ulimit -n`. Prints what came of it as JSON. `what`: create, or mix (every other one is suspended); or hungry: once
// the only VM's suspend is being written, this program opens files until it can open no more, and keeps them.
import fs from 'node:fs'
import { createClientIn } from '../../dist/client/client.js'
import { hostEnvironment } from '../../dist/client/environment.js'

const [runDirectory, checkpointDirectory, count, what] = process.argv.slice(2)
// The process of a simulated fleet outlives its VMs.
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
    failed: results.flatMap(({ reason }) => (reason === undefined || isSaved(reason) ? [] : [said(reason)])),
    complete: listed.filter(([one]) => one?.state === 'complete').length,
  }),
)

function save(vm, index) {
  if (what === 'hungry')
    return client.suspend(vm, { onProgress: ({ phase }) => phase === 'saving' && takeAll() })
  return what === 'mix' && index % 2 === 1 ? client.suspend(vm) : client.createCheckpoint(vm)
}

function isSaved({ code, message }) {
  return code === 'ERR_SUSPEND_FAILED' && message.includes('saved whole')
}

function said({ code, errno, message }) {
  return `${code} ${errno}: ${message}`
}

function takeAll() {
  try {
    for (;;) taken.push(fs.openSync('/dev/null', 'r'))
  } catch {
    return
  }
}
