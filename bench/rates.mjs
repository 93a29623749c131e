/**
 * The two parts of the scan, measured separately: digesting and zero detection. Also how fast the simulated bhyve
 * writes, because the other benchmarks must not measure the simulator.
 */
import { execFileSync } from 'node:child_process'
import { createCipheriv } from 'node:crypto'
import fs from 'node:fs'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { loadNative } from '../dist/base/native.js'
import { lastEnd } from './support/end_of_file.mjs'
import { GiB, KiB, median, MiB, pairedRatio, timed } from './support/harness.mjs'

const native = loadNative()
const pieceBytes = 256 * KiB
const workerFile = fileURLToPath(new URL('support/digest-worker.mjs', import.meta.url))

export async function measure({ report, quick, scratch }) {
  await digestRates({ report, quick, scratch })
  zeroScan({ report, quick })
  await simulatorRate({ report, quick })
}

async function digestRates({ report, quick, scratch }) {
  const bytes = (quick ? 256 : 1024) * MiB
  const file = scratch.at('random')
  writeRandom(file, bytes)
  const rates = { one: [], two: [], openssl: [] }
  for (let round = 0; round < (quick ? 3 : 7); round++) {
    rates.one.push(bytes / (await digestMs(file, bytes, 1)))
    rates.two.push(bytes / (await digestMs(file, bytes, 2)))
    rates.openssl.push(opensslRate())
  }
  report.keep('digestBytesPerMs', rates)
  const inGiB = (values) => (median(values) * 1000) / GiB
  const row = (what, values) => [what, inGiB(values), pairedRatio(values, rates.openssl)]
  report.table(
    'SHA-256 of a file in the page cache, 256 KiB pieces, zero scan included',
    ['what', 'GiB/s', 'over openssl speed'],
    [row('1 worker', rates.one), row('2 workers', rates.two), row('openssl speed, 1 thread', rates.openssl)],
  )
  report.atLeast('1 worker over openssl speed', pairedRatio(rates.one, rates.openssl), 0.8)
  report.atLeast('2 workers over 1 worker', pairedRatio(rates.two, rates.one), 1.6)
}

function writeRandom(file, bytes) {
  const cipher = createCipheriv('aes-128-ctr', Buffer.alloc(16, 1), Buffer.alloc(16))
  const zeros = Buffer.alloc(8 * MiB)
  const descriptor = fs.openSync(file, 'w')
  for (let done = 0; done < bytes; done += zeros.length) fs.writeSync(descriptor, cipher.update(zeros))
  fs.closeSync(descriptor)
}

/** The clock starts after the workers have started and loaded their modules. */
async function digestMs(file, bytes, count) {
  const share = bytes / count
  const workers = Array.from({ length: count }, (_, index) => {
    const workerData = { file, from: index * share, to: (index + 1) * share }
    return new Worker(workerFile, { workerData })
  })
  const message = (worker) => new Promise((resolve) => worker.once('message', resolve))
  await Promise.all(workers.map(message))
  const done = workers.map(message)
  const { ms } = await timed(() => {
    for (const worker of workers) worker.postMessage('go')
    return Promise.all(done)
  })
  return ms
}

/**
 * Bytes per ms from the output of openssl: `sha256  <thousands of bytes per second>k`. `-elapsed` measures wall time,
 * as our own measurement does, and not processor time.
 */
function opensslRate() {
  const args = ['speed', '-elapsed', '-seconds', '1', '-bytes', String(pieceBytes), '-evp', 'sha256']
  const text = execFileSync('openssl', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
  return Number(/^sha256\s+([\d.]+)k/im.exec(text)?.[1])
}

function zeroScan({ report, quick }) {
  const bytes = 256 * MiB
  // Written to, so that the pages are real memory and not the system's shared page of zeros.
  const zeros = Buffer.alloc(bytes, 1).fill(0)
  const target = Buffer.alloc(bytes, 1)
  const rates = { wholePieces: [], pages: [], memcpy: [] }
  const rateOf = (work) => {
    const start = performance.now()
    for (let at = 0; at < bytes; at += pieceBytes) work(at)
    return bytes / (performance.now() - start)
  }
  for (let round = 0; round < (quick ? 5 : 15); round++) {
    const piece = (at) => zeros.subarray(at, at + pieceBytes)
    rates.wholePieces.push(rateOf((at) => native.zeroRuns(piece(at), pieceBytes)))
    rates.pages.push(rateOf((at) => native.zeroRuns(piece(at), 4096)))
    rates.memcpy.push(rateOf((at) => zeros.copy(target, at, at, at + pieceBytes)))
  }
  report.keep('zeroScanBytesPerMs', rates)
  const row = (what, values) => [what, (median(values) * 1000) / GiB, pairedRatio(values, rates.memcpy)]
  report.table(
    'zero detection in 256 MiB of zeros, compared with copying them',
    ['what', 'GiB/s', 'over memcpy'],
    [row('whole pieces', rates.wholePieces), row('page by page', rates.pages), row('memcpy', rates.memcpy)],
  )
  report.atLeast('zero scan, page by page, over memcpy', pairedRatio(rates.pages, rates.memcpy), 0.5)
}

/** The simulated bhyve writes into a tmpfs. `dd` copies the same bytes from one tmpfs file to another. */
async function simulatorRate({ report, quick }) {
  const memoryBytes = (quick ? 0.5 : 2) * GiB
  const directory = fs.mkdtempSync('/dev/shm/bhyve-checkpoint-bench-')
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes, zeroFraction: 0.5 })
  const client = createClient({
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: directory,
    dialect: 'descriptor',
  })
  const rates = { simulator: [], dd: [] }
  try {
    const [source, copy] = [`${directory}/source`, `${directory}/copy`]
    for (let round = 0; round < (quick ? 3 : 5); round++) {
      const start = performance.now()
      const made = await client.createCheckpoint('vm1', { digest: false, sparsify: false, fsync: false })
      rates.simulator.push(memoryBytes / (lastEnd() - start))
      fs.renameSync(made.path, source)
      const { ms } = await timed(() =>
        execFileSync('dd', [`if=${source}`, `of=${copy}`, 'bs=1M', 'status=none']),
      )
      rates.dd.push(memoryBytes / ms)
      fs.rmSync(copy)
      fs.rmSync(source)
      await client.destroyAll('vm1')
      await client.idle()
    }
  } finally {
    await bhyve.stop()
    fs.rmSync(directory, { recursive: true, force: true })
  }
  report.keep('simulatorBytesPerMs', rates)
  const row = (what, values) => [what, (median(values) * 1000) / GiB, pairedRatio(values, rates.dd)]
  report.table(
    `${memoryBytes / GiB} GiB into a tmpfs`,
    ['what', 'GiB/s', 'over dd'],
    [row('simulated bhyve', rates.simulator), row('dd', rates.dd)],
  )
  report.atLeast('the simulated bhyve over dd, into a tmpfs', pairedRatio(rates.simulator, rates.dd), 0.7)
}
