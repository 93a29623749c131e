/** Helpers for the tests of createCheckpoint: a VM that stops with its test, and a bhyve that creates no file. */
import fs from 'node:fs'
import net from 'node:net'
import path from 'node:path'
import { type Test } from 'tap'
import { SimulatedBhyve, type SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { scratch } from './index.js'

const MiB = 1024 * 1024

export async function start(t: Test, options: Partial<SimulatorOptions> = {}): Promise<SimulatedBhyve> {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: MiB, ...options })
  t.teardown(() => bhyve.stop())
  return bhyve
}

/** A bhyve that reads requests but creates no file, as if the file system had no free inodes, and continues to run. */
export async function refusing(t: Test): Promise<{ directory: string; requests: Buffer[] }> {
  const directory = scratch(t)
  const requests: Buffer[] = []
  const server = net.createServer((connection) => {
    const parts: Buffer[] = []
    connection.on('data', (bytes) => parts.push(bytes)).on('error', () => undefined)
    connection.on('end', () => requests.push(Buffer.concat(parts)))
  })
  await new Promise<void>((resolve) => server.listen(path.join(directory, 'vm1'), resolve))
  t.teardown(() => server.close())
  fs.mkdirSync(path.join(directory, 'vmm'))
  fs.writeFileSync(path.join(directory, 'vmm/vm1'), '')
  return { directory, requests }
}
