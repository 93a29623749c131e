// A host program that has many VMs saved at once and, where asked to, reads a file again and again meanwhile: what it
// reads is garbage of its own, so that memory is measured without it.
import fs from 'node:fs'
import { readFile } from 'node:fs/promises'
import net from 'node:net'
import path from 'node:path'
import { createClient } from 'bhyve-checkpoint'
import { percentile } from './harness.mjs'

const { way, reads, vms, runDirectory, directory } = JSON.parse(process.argv[2])
const sampleMs = 20
const read = []
let most = 0
let isRunning = reads

const ask = way === 'ours' ? library() : bareSocket
// What this file's own reading needs is there before it is counted.
await readFile(process.argv[1])
// libuv keeps a descriptor in reserve from the first socket on.
await new Promise((resolve) => {
  net.connect(path.join(runDirectory, 'nobody')).once('error', resolve)
})
const opened = () => fs.readdirSync('/dev/fd').length
const descriptors = opened()
const rssBefore = process.memoryUsage.rss()

const reading = (async () => {
  while (isRunning) {
    const start = performance.now()
    await readFile(process.argv[1])
    read.push(performance.now() - start)
    await new Promise((resolve) => setTimeout(resolve, 1))
  }
})()
const sampling = setInterval(() => (most = Math.max(most, process.memoryUsage.rss())), sampleMs)
const start = performance.now()
const results = await Promise.allSettled(vms.map(ask))
const ms = performance.now() - start
isRunning = false
await reading
clearInterval(sampling)
const descriptorsLeft = await untilBack()
console.log(
  JSON.stringify({
    ms,
    failed: results.filter(({ status }) => status !== 'fulfilled').length,
    rssGrowthBytes: most - rssBefore,
    descriptorsLeft,
    readP50Ms: percentile(read, 50),
    readP99Ms: percentile(read, 99),
    reads: read.length,
  }),
)

/** The library's threads have some of their own until they have been idle for a while. */
async function untilBack() {
  for (const deadline = performance.now() + 10_000; performance.now() < deadline;) {
    if (opened() <= descriptors) return 0
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  return opened() - descriptors
}

function library() {
  const client = createClient({ runDirectory, checkpointDirectory: directory, dialect: 'path' })
  return (vm) => client.createCheckpoint(vm)
}

/** The request of a bhyve that takes a whole path, and the wait for its end: what any way needs at least. */
async function bareSocket(vm) {
  const folder = path.join(directory, vm)
  fs.mkdirSync(folder, { recursive: true })
  const socket = net.connect(path.join(runDirectory, vm))
  socket.end(request(path.join(folder, 'checkpoint.ckp')))
  await new Promise((resolve, reject) => {
    socket.once('close', resolve).once('error', reject).resume()
  })
}

function request(file) {
  const pairs = [pair(4, 'cmd', 'checkpoint\0'), pair(4, 'filename', `${file}\0`), pair(2, 'suspend', '\0')]
  const body = Buffer.concat(pairs)
  const head = Buffer.alloc(19)
  head.writeUInt8(0x6c)
  head.writeBigUInt64LE(BigInt(body.length), 11)
  return Buffer.concat([head, body])
}

function pair(type, name, data) {
  const head = Buffer.alloc(19)
  head.writeUInt8(type)
  head.writeUInt16LE(name.length + 1, 1)
  head.writeBigUInt64LE(BigInt(Buffer.byteLength(data)), 3)
  return Buffer.concat([head, Buffer.from(`${name}\0${data}`)])
}
