/** RAM images with zeros, in realistic and in unrealistic layouts. */
import { createCipheriv } from 'node:crypto'
import fs from 'node:fs'
import { MiB } from './harness.mjs'

const pageBytes = 4096
const partBytes = 8 * MiB

/** Pseudo-random numbers from 0 to 1, the same in every run. */
function numbers(seed) {
  let state = seed
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32
  }
}

/**
 * Which pages are zero. The lengths of the runs are exponentially distributed with the mean `meanRun`: 1 gives single
 * pages everywhere, 256 resembles a guest that was booted and has free memory.
 */
export function* zeroPages(pages, fraction, meanRun, seed = 1) {
  const next = numbers(seed)
  const length = (mean) => Math.max(1, Math.round(-Math.log(1 - next()) * mean))
  const meanData = (meanRun * (1 - fraction)) / fraction
  let isZero = false
  for (let page = 0, end = 0; page < pages; page++) {
    if (page === end) {
      isZero = !isZero
      end += length(isZero ? meanRun : meanData)
    }
    yield isZero
  }
}

export function writeImage(file, bytes, fraction, meanRun) {
  const descriptor = fs.openSync(file, 'w')
  const cipher = createCipheriv('aes-128-ctr', Buffer.alloc(16, 7), Buffer.alloc(16))
  const zero = zeroPages(bytes / pageBytes, fraction, meanRun)
  const nothing = Buffer.alloc(partBytes)
  for (let done = 0; done < bytes; done += partBytes) {
    const part = cipher.update(nothing.subarray(0, Math.min(partBytes, bytes - done)))
    for (let at = 0; at < part.length; at += pageBytes) {
      if (zero.next().value) part.fill(0, at, at + pageBytes)
    }
    fs.writeSync(descriptor, part)
  }
  fs.closeSync(descriptor)
}
