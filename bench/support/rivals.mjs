/**
 * The ways in which programs have a checkpoint made today. Each resolves where it would tell its user that the
 * checkpoint is there, and rejects where it would tell of a failure.
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

/** CBSD says "1/5" to "5/5", a second each. */
export const cbsdSeconds = 5
const pollMs = 200
const stillLooks = 3

/** Compiles the bhyvectl-like program and returns its path. */
export function buildBhyvectl(folder) {
  const program = path.join(folder, 'bhyvectl')
  const source = fileURLToPath(new URL('bhyvectl.cc', import.meta.url))
  const { status, stderr } = spawnSync(process.env.CXX ?? 'c++', ['-O2', '-std=c++17', '-o', program, source])
  if (status !== 0) throw new Error(`the rival's bhyvectl does not compile: ${stderr}`)
  return program
}

/** `seconds`: how long the ways that sleep do so. */
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
      await untilSizesStand(file)
    },
    'execFile, wait for EOF': (socket, file) => ask(socket, file, 'wait'),
    'shell script': async (socket, file) => {
      const name = path.basename(file, '.ckp')
      await run(script, ['create', path.dirname(file), name, bhyvectl, socket, String(seconds / 5)])
    },
  }
}

export function shellList(folder) {
  return run(script, ['list', folder], { maxBuffer: 64 * 1024 * 1024 })
}

export function shellDestroyAll(folder) {
  return run(script, ['destroyall', folder])
}

async function untilSizesStand(file) {
  let last = ''
  for (let same = 0, looks = 0; same < stillLooks; looks++) {
    if (looks > 300) throw new Error('the files never stood still')
    await pause(pollMs)
    const sizes = await sizesOf(file)
    same = sizes === last && sizes !== '' ? same + 1 : 0
    last = sizes
  }
}

/** Empty as long as the RAM file is not there or empty. */
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

/** Whether a set is, byte for byte, what it should be. */
export function isEqualSet(file, expected) {
  return ['', '.kern', '.meta'].every((ending) => {
    if (!fs.existsSync(file + ending)) return false
    return fs.readFileSync(file + ending).equals(fs.readFileSync(expected + ending))
  })
}
