/** Checks that Workers terminated in the middle of a call leave no descriptor, lock or stage. */
import path from 'node:path'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import type { Test } from 'tap'
import { checkpointFiles, runScript, scratch } from './index.js'

const MiB = 1024 * 1024

export async function terminateWorkers(t: Test, phase: string, count: number): Promise<void> {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: MiB, writeRate: 16 * MiB })
  t.teardown(() => bhyve.stop())
  const checkpointDirectory = scratch(t)
  const ended = await runScript('worker.mjs', [bhyve.runDirectory, checkpointDirectory, phase, String(count)])
  t.match(ended, { code: 0, signal: null, stderr: '' }, phase)
  t.match(ended.stdout, '{"leaked":0}\n{"name":"after"}\n', `${phase}: no descriptor or lock is left`)
  const left = checkpointFiles(path.join(checkpointDirectory, 'vm1'))
  t.ok(
    left.every((file) => file.startsWith('after.ckp') || file.startsWith('checkpoint.ckp')),
    `${phase}: no stage is left`,
  )
}
