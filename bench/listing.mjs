/** Lists many checkpoints, compared with `find -printf` and with a shell script. */
import { execFile, execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { promisify } from 'node:util'
import { fileURLToPath } from 'node:url'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { median, MiB, pairedRatio, timed } from './support/harness.mjs'
import { shellDestroyAll, shellList } from './support/rivals.mjs'

const run = promisify(execFile)
const host = fileURLToPath(new URL('support/listing-host.mjs', import.meta.url))
const mostForShell = 1000
const endings = ['', '.kern', '.meta', '.manifest']

export async function measure({ report, quick, scratch }) {
  const set = await oneSet(scratch)
  await oneDirectory({ report, quick, scratch }, set)
  await manyVms({ report, quick, scratch }, set)
  await destroying({ report, quick, scratch }, set)
}

async function oneSet(scratch) {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 4096 })
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: scratch.at('set') })
  const { path: file } = await client.createCheckpoint('vm1')
  await bhyve.stop()
  return file
}

/** The directory has the name of the VM. */
function fill(directory, set, from, to) {
  fs.mkdirSync(directory, { recursive: true })
  const metadata = fs.readFileSync(`${set}.meta`, 'utf8')
  const ownMetadata = metadata.replace('"vmname": "vm1"', `"vmname": "${path.basename(directory)}"`)
  // Keep the time of the RAM file: listing a copy with another time computes two digests. The manifest has it without
  // the fraction of the millisecond, and half of one is safe from rounding.
  const { memoryModifiedMs } = JSON.parse(fs.readFileSync(`${set}.manifest`, 'utf8'))
  const seconds = (memoryModifiedMs + 0.5) / 1000
  for (let index = from; index < to; index++) {
    const file = path.join(directory, `c${index}.ckp`)
    for (const ending of endings) fs.copyFileSync(set + ending, file + ending)
    fs.writeFileSync(`${file}.meta`, ownMetadata)
    fs.utimesSync(file, seconds, seconds)
  }
}

async function oneDirectory({ report, quick, scratch }, set) {
  const found = []
  let made = 0
  for (const count of quick ? [100, 1000] : [100, 300, 1000, 3000, 10_000]) {
    fill(scratch.at('one', 'vm1'), set, made, count)
    made = count
    found.push({ count, ...(await rounds(scratch.at('one'), ['vm1'], count, quick)) })
  }
  report.keep('oneDirectory', found)
  show(report, 'checkpoints in one directory', found)
  const [first, last] = [found[0], found.at(-1)]
  const many = found.filter(({ count }) => count >= 1000)
  const worst = Math.max(...many.map(({ oursMs, findMs }) => pairedRatio(oursMs, findMs)))
  report.atMost('1,000 and more in one directory, worst case: ours over find', worst, 6)
  const perOne = ({ count, oursMs }) => median(oursMs) / count
  report.atMost(`time per checkpoint, ${last.count} over ${first.count}`, perOne(last) / perOne(first), 1.2)
}

async function manyVms({ report, quick, scratch }, set) {
  const found = []
  const names = []
  for (const vms of quick ? [100] : [100, 300, 1000]) {
    for (let index = names.length; index < vms; index++) {
      names.push(`vm${index}`)
      fill(scratch.at('many', `vm${index}`), set, 0, 10)
    }
    found.push({ count: vms * 10, ...(await rounds(scratch.at('many'), [...names], vms * 10, quick)) })
  }
  report.keep('manyVms', found)
  show(report, 'checkpoints, 10 of each VM', found)
  const last = found.at(-1)
  report.atMost(`${last.count / 10} VMs: ours over find`, pairedRatio(last.oursMs, last.findMs), 8)
}

async function rounds(root, vms, count, quick) {
  const result = { oursMs: [], rssGrowthBytes: [], findMs: [], shellMs: [] }
  const find = () =>
    execFileSync('find', [root, '-type', 'f', '-printf', '%p\t%s\t%b\t%T@\n'], { maxBuffer: 64 * MiB })
  for (let round = 0; round < (quick ? 3 : 5); round++) {
    const { stdout } = await run(process.execPath, [host, JSON.stringify({ root, vms })], {
      maxBuffer: 64 * MiB,
    })
    const ours = JSON.parse(stdout)
    if (ours.complete !== count)
      throw new Error(`only ${ours.complete} of ${count} checkpoints were listed as complete`)
    result.oursMs.push(ours.ms)
    result.rssGrowthBytes.push(ours.rssGrowthBytes)
    result.findMs.push((await timed(find)).ms)
    // The script starts a process or two for each file. More rounds would take minutes.
    if (round > 0 || count > mostForShell) continue
    const shell = async () => {
      for (const vm of vms) await shellList(path.join(root, vm))
    }
    result.shellMs.push((await timed(shell)).ms)
  }
  return result
}

function show(report, what, found) {
  report.table(
    'listing; medians in ms',
    [what, 'ours', 'find', 'ratio', 'shell', 'shell over ours', 'RSS growth MiB'],
    found.map(({ count, oursMs, findMs, shellMs, rssGrowthBytes }) => [
      count,
      median(oursMs),
      median(findMs),
      pairedRatio(oursMs, findMs),
      ...(shellMs.length === 0 ? ['-', '-'] : [median(shellMs), median(shellMs) / median(oursMs)]),
      median(rssGrowthBytes) / MiB,
    ]),
  )
}

async function destroying({ report, quick, scratch }, set) {
  const count = quick ? 100 : 1000
  const client = createClient({ checkpointDirectory: scratch.at('destroyed') })
  const result = { count, oursMs: [], shellMs: [] }
  for (let round = 0; round < 3; round++) {
    const directory = scratch.at('destroyed', 'vm1')
    fill(directory, set, 0, count)
    result.oursMs.push((await timed(() => client.destroyAll('vm1'))).ms)
    fill(directory, set, 0, count)
    result.shellMs.push((await timed(() => shellDestroyAll(directory))).ms)
  }
  report.keep('destroyAll', result)
  report.table(
    `destroyAll of ${count} checkpoints; medians in ms (ours survives a crash, the script does not)`,
    ['ours', 'shell', 'ratio'],
    [[median(result.oursMs), median(result.shellMs), pairedRatio(result.oursMs, result.shellMs)]],
  )
}
