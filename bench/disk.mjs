/** How much disk space a checkpoint takes, and whether its content is the same with holes. */
import { execFileSync } from 'node:child_process'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { MiB } from './support/harness.mjs'

export async function measure({ report, quick, scratch }) {
  const memoryBytes = (quick ? 256 : 1024) * MiB
  const found = []
  for (const zeroFraction of quick ? [0.5, 0.8] : [0, 0.2, 0.5, 0.8, 0.95]) {
    const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes, zeroFraction })
    const { runDirectory } = bhyve
    const client = createClient({ runDirectory, checkpointDirectory: scratch.path, dialect: 'descriptor' })
    const whole = await client.createCheckpoint('vm1', { sparsify: false, digest: false, fsync: false })
    const before = digestOf(whole.path)
    const sparse = await client.createCheckpoint('vm1')
    const after = digestOf(sparse.path)
    const storedFraction = sparse.storedBytes / memoryBytes
    found.push({ memoryBytes, zeroFraction, storedFraction, isEqual: before === after })
    await client.destroyAll('vm1')
    await bhyve.stop()
  }
  report.keep('guests', found)
  report.table(
    `a guest of ${memoryBytes / MiB} MiB`,
    ['zero pages', 'stored', 'sha256 before and after'],
    found.map(({ zeroFraction, storedFraction, isEqual }) => [
      `${zeroFraction * 100} %`,
      `${(storedFraction * 100).toFixed(1)} %`,
      isEqual ? 'identical' : 'DIFFERENT',
    ]),
  )
  report.atMost('contents that differ', found.filter(({ isEqual }) => !isEqual).length, 0)
}

function digestOf(file) {
  return execFileSync('openssl', ['dgst', '-sha256', '-r', file], { encoding: 'utf8' }).split(' ')[0]
}
