// A bhyve of another user that means ill: takes requests in the dialect `descriptor`, and for each does what the next
// line of standard input says: {"plant", "good", "secret", "end"}. Answers each with a line once the connection is closed.
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

/** Reads one whole request and returns the folder that came with it. */
function takeRequest() {
  native.simulator.poll([listener], -1)
  const connection = native.simulator.accept(listener)
  const read = (length) => {
    let bytes = Buffer.alloc(0)
    while (bytes.length < length) {
      native.simulator.poll([connection], -1)
      const more = native.simulator.receive(connection, length - bytes.length)
      if (isFailure(more) || more.length === 0) throw new Error('the request ended early')
      bytes = Buffer.concat([bytes, more])
    }
    return bytes
  }
  read(Number(read(19).readBigUInt64LE(11)))
  native.simulator.poll([connection], -1)
  const { descriptors } = native.simulator.receiveDescriptors(connection, 1)
  return { connection, folder: descriptors[0] }
}

/** Goes on filling folders of its own by their descriptors, wherever they are by now. */
function keepFilling(folder) {
  fs.mkdirSync(path.join(folder, 'mine'))
  const mine = fs.openSync(path.join(folder, 'mine'), 'r')
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

/** Dies where anything above its folder lets it in. */
function goUp(folder) {
  const ways = {
    list: () => fs.readdirSync(`${folder}/..`),
    write: () => fs.writeFileSync(`${folder}/../planted`, ''),
    further: () => fs.readdirSync(`${folder}/../..`),
    rename: () => fs.renameSync(`${folder}/../in`, `${folder}/mine`),
  }
  for (const [what, go] of Object.entries(ways)) {
    try {
      go()
    } catch (error) {
      if (error.code === 'EACCES') continue
      throw error
    }
    throw new Error(`a way up: ${what}`)
  }
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  const { plant, good, secret, end } = JSON.parse(line)
  const { connection, folder } = takeRequest()
  const where = `/proc/self/fd/${folder}`
  if (good) writeSet(path.join(where, 'ckp'), 1)
  if (plant === 'folders that fill by themselves') keepFilling(where)
  else if (plant === 'the way up') goUp(where)
  else (plants[plant] ?? litter[plant] ?? (() => undefined))(where, secret)
  if (end === 'exit') process.exit(0)
  native.close(connection)
  console.log('done')
}
process.exit(0)
