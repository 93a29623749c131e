/** The smallest useful hole: what is stored, and what the scan, the fsync and the removal cost. */
import fs from 'node:fs'
import { loadNative } from '../dist/base/native.js'
import { KiB, MiB, median, timed } from './support/harness.mjs'
import { writeImage } from './support/images.mjs'
import { settleDisk } from './support/scratch.mjs'

const native = loadNative()
const pageBytes = 4 * KiB
const pieceBytes = 256 * KiB
const leastHoles = [4 * KiB, 16 * KiB, 32 * KiB, 64 * KiB, 256 * KiB]
const layouts = [
  { name: 'single pages', meanRun: 1 },
  { name: 'runs of 16 pages', meanRun: 16 },
  { name: 'runs of 256 pages', meanRun: 256 },
]

export async function measure({ report, quick, scratch }) {
  const bytes = (quick ? 128 : 512) * MiB
  const found = []
  for (const { name, meanRun } of layouts) {
    for (const least of leastHoles) {
      const rounds = []
      for (let round = 0; round < (quick ? 1 : 3); round++) {
        writeImage(scratch.at('image'), bytes, 0.5, meanRun)
        rounds.push(await punch(scratch.at('image'), bytes, least))
      }
      found.push({ layout: name, leastHoleBytes: least, bytes, rounds })
    }
  }
  report.keep('holes', found)
  const of = (rounds, key) => median(rounds.map((round) => round[key]))
  report.table(
    `half of ${bytes / MiB} MiB is zero`,
    ['layout', 'smallest hole', 'stored', 'holes', 'scan ms', 'fsync ms', 'unlink ms'],
    found.map(({ layout, leastHoleBytes, rounds }) => [
      layout,
      `${leastHoleBytes / KiB} KiB`,
      of(rounds, 'storedFraction'),
      rounds[0].holes,
      of(rounds, 'passMs'),
      of(rounds, 'syncMs'),
      of(rounds, 'unlinkMs'),
    ]),
  )
}

async function punch(file, bytes, least) {
  const descriptor = fs.openSync(file, 'r+')
  const buffer = Buffer.alloc(pieceBytes)
  let holes = 0
  const pass = await timed(() => {
    let from = 0
    let to = 0
    const flush = () => {
      if (to - from < least) return
      native.punchHole(descriptor, from, to - from)
      holes++
    }
    for (let at = 0; at < bytes; at += pieceBytes) {
      fs.readSync(descriptor, buffer, 0, pieceBytes, at)
      const runs = native.zeroRuns(buffer, pageBytes)
      for (let index = 0; index < runs.length; index += 2) {
        if (at + runs[index] !== to) {
          flush()
          from = at + runs[index]
        }
        to = at + runs[index + 1]
      }
    }
    flush()
  })
  const sync = await timed(() => fs.fsyncSync(descriptor))
  const { blocks } = fs.fstatSync(descriptor)
  fs.closeSync(descriptor)
  const unlink = await timed(() => fs.unlinkSync(file))
  settleDisk()
  const storedFraction = (blocks * 512) / bytes
  return { holes, storedFraction, passMs: pass.ms, syncMs: sync.ms, unlinkMs: unlink.ms }
}
