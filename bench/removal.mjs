/**
 * What it costs that there was something before: replacing a checkpoint against making the first one, and destroying
 * ten against moving their files away. Neither may wait until the file system has freed the blocks.
 */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { GiB, median, MiB, pairedRatio, timed } from './support/harness.mjs'
import { settleDisk } from './support/scratch.mjs'

const vm = 'vm1'

export async function measure({ report, quick, scratch }) {
  const memoryBytes = quick ? GiB / 4 : 2 * GiB
  const rounds = quick ? 3 : 5
  const bhyve = await SimulatedBhyve.start({ vm, memoryBytes, zeroFraction: 0.5 })
  const { runDirectory } = bhyve
  const client = createClient({
    runDirectory,
    checkpointDirectory: scratch.at('ours'),
    dialect: 'descriptor',
  })
  const world = { scratch, client, memoryBytes, rounds }
  try {
    showReplacing(report, memoryBytes, await replacing(world))
    showDestroying(report, memoryBytes, await destroying(world))
  } finally {
    await bhyve.stop()
  }
}

async function settle(client) {
  await client.idle()
  settleDisk()
}

async function replacing({ client, rounds }) {
  const found = { firstMs: [], replacingMs: [], blocksFreedMs: [] }
  for (let round = 0; round < rounds; round++) {
    await settle(client)
    found.firstMs.push((await timed(() => client.createCheckpoint(vm))).ms)
    await settle(client)
    found.replacingMs.push((await timed(() => client.createCheckpoint(vm))).ms)
    found.blocksFreedMs.push((await timed(() => client.idle())).ms)
    await client.destroyAll(vm)
  }
  return found
}

/** The rival moves the same files away and back again before they are destroyed. */
async function destroying({ scratch, client, rounds }) {
  const found = { destroyAllMs: [], moveMs: [], blocksFreedMs: [] }
  const folder = scratch.at('ours', vm)
  for (let round = 0; round < rounds; round++) {
    for (let index = 0; index < 10; index++) await client.createCheckpoint(vm, { name: `c${index}` })
    await settle(client)
    const aside = scratch.folder('aside')
    found.moveMs.push((await timed(() => move(folder, aside))).ms)
    move(aside, folder)
    await settle(client)
    found.destroyAllMs.push((await timed(() => client.destroyAll(vm))).ms)
    found.blocksFreedMs.push((await timed(() => client.idle())).ms)
  }
  return found
}

function move(from, to) {
  const files = fs.readdirSync(from).filter((name) => /^c\d\.ckp/.test(name))
  execFileSync('mv', [...files.map((name) => `${from}/${name}`), to])
  execFileSync('sync', [from, to])
}

function showReplacing(report, memoryBytes, found) {
  report.keep('replacing', { memoryBytes, ...found })
  report.table(
    `a guest of ${memoryBytes / MiB} MiB, half zero; medians in ms`,
    ['the first', 'replacing it', 'ratio', 'until its blocks are free'],
    [
      [
        ...[found.firstMs, found.replacingMs].map(median),
        pairedRatio(found.replacingMs, found.firstMs),
        median(found.blocksFreedMs),
      ],
    ],
  )
  report.atMost('replacing over the first time', pairedRatio(found.replacingMs, found.firstMs), 1.15)
}

function showDestroying(report, memoryBytes, found) {
  report.keep('destroying', { memoryBytes, ...found })
  report.table(
    `ten checkpoints of ${memoryBytes / MiB} MiB, half zero; medians in ms`,
    ['destroyAll', 'mv and sync', 'ratio', 'until their blocks are free'],
    [
      [
        ...[found.destroyAllMs, found.moveMs].map(median),
        pairedRatio(found.destroyAllMs, found.moveMs),
        median(found.blocksFreedMs),
      ],
    ],
  )
  report.atMost('destroyAll of ten over mv and sync', pairedRatio(found.destroyAllMs, found.moveMs), 2)
}
