// A hostile bhyve that runs as another user. It accepts requests in the dialect `descriptor`. For each request, it
// reads one line of JSON from standard input, {"plant", "good", "secret", "end"}, and carries it out. After it has
// closed the connection, it prints one line.
import fs from 'node:fs'
import path from 'node:path'
import readline from 'node:readline'
import { isFailure } from '../../dist/base/native.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import { writeSet } from '../crash/sets.mjs'
import { litter, plants } from './plants.mjs'

const [runDirectory, uid] = process.argv.slice(2)
process.setgid(Number(uid))
process.setuid(Number(uid))
process.umask(0)
const native = loadSimulatorNative()
const listener = native.simulator.listenStream(path.join(runDirectory, 'vm1'), 5)

/** Reads one complete request. Returns the connection and the descriptor of the inbox. */
function takeRequest() {
  native.simulator.poll([listener], -1)
  const connection = native.simulator.accept(listener)
  const read = (length) => {
    let bytes = Buffer.alloc(0)
    while (bytes.length < length) {
      native.simulator.poll([connection], -1)
      const more = native.simulator.receive(connection, length - bytes.length)
      if (isFailure(more) || more.length === 0) throw new Error('The request ended early')
      bytes = Buffer.concat([bytes, more])
    }
    return bytes
  }
  read(Number(read(19).readBigUInt64LE(11)))
  native.simulator.poll([connection], -1)
  const { descriptors } = native.simulator.receiveDescriptors(connection, 1)
  return { connection, inbox: descriptors[0] }
}

/** Continues to create files in a directory of its own, through its descriptor, so that a rename does not stop it. */
function keepFilling(inbox) {
  fs.mkdirSync(path.join(inbox, 'mine'))
  const mine = fs.openSync(path.join(inbox, 'mine'), 'r')
  let index = 0
  setInterval(() => {
    for (let round = 0; round < 200; round++) {
      try {
        fs.writeFileSync(`/proc/self/fd/${mine}/${index++}`, '')
      } catch {
        return
      }
    }
  }, 0)
}

/** Throws if it can access a directory above its inbox. */
function goUp(inbox) {
  const ways = {
    list: () => fs.readdirSync(`${inbox}/..`),
    write: () => fs.writeFileSync(`${inbox}/../planted`, ''),
    further: () => fs.readdirSync(`${inbox}/../..`),
    rename: () => fs.renameSync(`${inbox}/../in`, `${inbox}/mine`),
  }
  for (const [what, go] of Object.entries(ways)) {
    try {
      go()
    } catch (error) {
      if (error.code === 'EACCES') continue
      throw error
    }
    throw new Error(`Access above the inbox is possible: ${what}`)
  }
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  const { plant, good, secret, end } = JSON.parse(line)
  const { connection, inbox } = takeRequest()
  const where = `/proc/self/fd/${inbox}`
  if (good) writeSet(path.join(where, 'ckp'), 1)
  if (plant === 'folders that fill by themselves') keepFilling(where)
  else if (plant === 'the way up') goUp(where)
  else (plants[plant] ?? litter[plant] ?? (() => undefined))(where, secret)
  if (end === 'exit') process.exit(0)
  native.close(connection)
  console.log('done')
}
process.exit(0)
