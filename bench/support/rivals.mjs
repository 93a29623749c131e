/**
 * How programs create a checkpoint today. Each function resolves when that program would report success, and rejects
 * when it would report a failure.
 */
import { execFile, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import fsPromises from 'node:fs/promises'
import path from 'node:path'
import { promisify } from 'node:util'
import { fileURLToPath } from 'node:url'

const run = promisify(execFile)
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
const script = fileURLToPath(new URL('bcheckpoint.sh', import.meta.url))

/** CBSD prints "1/5" to "5/5", one per second. */
export const cbsdSeconds = 5
const pollMs = 200
const stablePolls = 3

/** Compiles the bhyvectl-like program and returns its path. */
export function buildBhyvectl(directory) {
  const program = path.join(directory, 'bhyvectl')
  const source = fileURLToPath(new URL('bhyvectl.cc', import.meta.url))
  const { status, stderr } = spawnSync(process.env.CXX ?? 'c++', ['-O2', '-std=c++17', '-o', program, source])
  if (status !== 0) throw new Error(`bench/support/bhyvectl.cc does not compile: ${stderr}`)
  return program
}

/** `seconds`: how long the programs sleep that do. */
export function rivals(bhyvectl, seconds = cbsdSeconds) {
  const ask = async (socket, file, ...more) => {
    await fsPromises.mkdir(path.dirname(file), { recursive: true })
    await run(bhyvectl, [socket, file, ...more])
  }
  return {
    'execFile, no wait': (socket, file) => ask(socket, file),
    'execFile, sleep': async (socket, file) => {
      await ask(socket, file)
      await pause(seconds * 1000)
      await fsPromises.access(file)
    },
    'execFile, poll sizes': async (socket, file) => {
      await ask(socket, file)
      await untilSizesStable(file)
    },
    'execFile, wait for EOF': (socket, file) => ask(socket, file, 'wait'),
    'shell script': async (socket, file) => {
      const name = path.basename(file, '.ckp')
      await run(script, ['create', path.dirname(file), name, bhyvectl, socket, String(seconds / 5)])
    },
  }
}

export function shellList(directory) {
  return run(script, ['list', directory], { maxBuffer: 64 * 1024 * 1024 })
}

export function shellDestroyAll(directory) {
  return run(script, ['destroyall', directory])
}

async function untilSizesStable(file) {
  let last = ''
  for (let same = 0, polls = 0; same < stablePolls; polls++) {
    if (polls > 300) throw new Error('the sizes of the files never stopped changing')
    await pause(pollMs)
    const sizes = await sizesOf(file)
    same = sizes === last && sizes !== '' ? same + 1 : 0
    last = sizes
  }
}

/** Empty while the RAM file is missing or empty. */
async function sizesOf(file) {
  const sizes = await Promise.all(
    ['', '.kern', '.meta'].map((ending) =>
      fsPromises.stat(file + ending).then(
        ({ size }) => size,
        () => -1,
      ),
    ),
  )
  return sizes[0] > 0 ? sizes.join(' ') : ''
}

/** Whether the three files are byte for byte the expected ones. */
export function isEqualSet(file, expected) {
  return ['', '.kern', '.meta'].every((ending) => {
    if (!fs.existsSync(file + ending)) return false
    return fs.readFileSync(file + ending).equals(fs.readFileSync(expected + ending))
  })
}
