// Preloaded into one side of a move (`node --require`): kills its process before or after the n-th change on disk, start
// of a process, or message, counted over all threads. MOVE_STRIKE: `{ at, how, trace }`. `trace`: a file that gets one
// line for each.
'use strict'
const childProcess = require('node:child_process')
const fs = require('node:fs')
const { syncBuiltinESMExports } = require('node:module')
const process = require('node:process')
const workerThreads = require('node:worker_threads')

const { at, how, trace } = JSON.parse(process.env.MOVE_STRIKE)
const { getEnvironmentData, isMainThread, setEnvironmentData, Worker } = workerThreads
const key = 'move strike'
if (isMainThread) setEnvironmentData(key, new Int32Array(new SharedArrayBuffer(4)))
const counter = getEnvironmentData(key)
const { appendFileSync } = fs

/** The threads of the pool preload nothing of their own. */
workerThreads.Worker = class extends Worker {
  constructor(source, options) {
    super(source, {
      ...options,
      execArgv: [...(options.execArgv ?? []), '--require', require.resolve('./move_strike.cjs')],
    })
  }
}

function kill() {
  process.kill(process.pid, 'SIGKILL')
  for (;;); // wait for the signal
}

/** `describe`: undefined for a call that changes nothing. */
function strike(target, name, describe = () => name) {
  const original = target[name]
  target[name] = function (...args) {
    const what = describe(...args)
    if (what === undefined) return original.apply(this, args)
    const isStruck = Atomics.add(counter, 0, 1) + 1 === at
    appendFileSync(trace, `${what}\n`)
    if (isStruck && how === 'before') kill()
    const result = original.apply(this, args)
    if (isStruck && how === 'after') kill()
    return result
  }
}

function fileOf(name) {
  return typeof name === 'string' ? name.replace(/^[0-9a-z]{9,12}(?=\.|$)/, 'ID') : 'a file'
}

/** One of so many pieces of the archive counts. */
const piecesPerStrike = 16
let pieces = 0

/** The connection also sends its preamble, and that the process lives: that depends on the time. */
function messageOf(bytes) {
  const text = String(bytes)
  const type = /"type":"([a-z-]+)"/.exec(text.slice(0, 200))?.[1]
  if (type !== undefined) return `message ${type}`
  const isData = bytes.length > 5 && bytes[4] === 1
  return isData && pieces++ % piecesPerStrike === 0 ? 'data' : undefined
}

const creates = fs.constants.O_CREAT | fs.constants.O_TRUNC
for (const name of ['writeSync', 'ftruncateSync', 'fchmodSync', 'fchownSync', 'mkdirSync', 'rmdirSync'])
  strike(fs, name)
strike(childProcess, 'spawn')
syncBuiltinESMExports()
const { loadNative } = require('../../dist/base/native.js')
const native = loadNative()
for (const name of ['sync', 'punchHole', 'setModifiedAt', 'cloneFile', 'sendDescriptor']) strike(native, name)
for (const name of ['makeDirectoryAt', 'unlinkAt', 'removeDirectoryAt'])
  strike(native, name, (_, file) => `${name} ${fileOf(file)}`)
strike(native, 'renameAt', (_, from, __, to) => `renameAt ${fileOf(from)} ${fileOf(to)}`)
strike(native, 'openAt', (_, file, flags) => ((flags & creates) === 0 ? undefined : `create ${fileOf(file)}`))
if (isMainThread) strike(process.stdout, 'write', messageOf)
