/**
 * The cost of removing files: replacing a checkpoint compared with creating the first one, and destroying ten compared
 * with moving their files away. Neither call must wait until the file system has freed the blocks.
 */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { GiB, median, MiB, pairedRatio, timed } from './support/harness.mjs'
import { settleDisk } from './support/scratch.mjs'

const vm = 'vm1'
const replaced = {
  key: 'replacing',
  what: 'a guest',
  columns: ['replacing', 'the first time'],
  aim: 'replacing over creating the first one',
  most: 1.15,
}
const destroyed = {
  key: 'destroying',
  what: 'ten checkpoints',
  columns: ['destroyAll', 'mv and sync'],
  aim: 'destroyAll of ten over mv and sync',
  most: 2,
}

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
    show(report, replaced, { memoryBytes, found: await replacing(world) })
    show(report, destroyed, { memoryBytes, found: await destroying(world) })
  } finally {
    await bhyve.stop()
  }
}

async function settle(client) {
  await client.idle()
  settleDisk()
}

async function replacing({ client, rounds }) {
  const found = { oursMs: [], rivalMs: [], blocksFreedMs: [] }
  for (let round = 0; round < rounds; round++) {
    await settle(client)
    found.rivalMs.push((await timed(() => client.createCheckpoint(vm))).ms)
    await settle(client)
    found.oursMs.push((await timed(() => client.createCheckpoint(vm))).ms)
    found.blocksFreedMs.push((await timed(() => client.idle())).ms)
    await client.destroyAll(vm)
  }
  return found
}

/** The rival moves the same files away. They are moved back before they are destroyed. */
async function destroying({ scratch, client, rounds }) {
  const found = { oursMs: [], rivalMs: [], blocksFreedMs: [] }
  const directory = scratch.at('ours', vm)
  for (let round = 0; round < rounds; round++) {
    for (let index = 0; index < 10; index++) await client.createCheckpoint(vm, { name: `c${index}` })
    await settle(client)
    const aside = scratch.makeDirectory('aside')
    found.rivalMs.push((await timed(() => move(directory, aside))).ms)
    move(aside, directory)
    await settle(client)
    found.oursMs.push((await timed(() => client.destroyAll(vm))).ms)
    found.blocksFreedMs.push((await timed(() => client.idle())).ms)
  }
  return found
}

function move(from, to) {
  const files = fs.readdirSync(from).filter((name) => /^c\d\.ckp/.test(name))
  execFileSync('mv', [...files.map((name) => `${from}/${name}`), to])
  execFileSync('sync', [from, to])
}

function show(report, { key, what, columns, aim, most }, { memoryBytes, found }) {
  const { oursMs, rivalMs, blocksFreedMs } = found
  const ratio = pairedRatio(oursMs, rivalMs)
  report.keep(key, { memoryBytes, ...found })
  report.table(
    `${what} of ${memoryBytes / MiB} MiB, half zero; medians in ms`,
    [...columns, 'ratio', 'until the blocks are freed'],
    [[median(oursMs), median(rivalMs), ratio, median(blocksFreedMs)]],
  )
  report.atMost(aim, ratio, most)
}
