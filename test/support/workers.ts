/** Checks that Workers terminated in the middle of a call leave no descriptor, lock or stage. */
import path from 'node:path'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import type { Test } from 'tap'
import { checkpointFiles, runScript, scratch } from './index.js'

const MiB = 1024 * 1024

/** Terminates this many Workers in each of the phases, all from one process. */
export async function terminateWorkers(t: Test, phases: readonly string[], count: number): Promise<void> {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: MiB, writeRate: 16 * MiB })
  t.teardown(() => bhyve.stop())
  const checkpointDirectory = scratch(t)
  const args = [bhyve.runDirectory, checkpointDirectory, String(count), ...phases]
  const ended = await runScript('worker.mjs', args)
  t.match(ended, { code: 0, signal: null, stderr: '' })
  const clean = phases.map((phase) => `{"phase":"${phase}","leaked":0}\n`)
  t.equal(ended.stdout, `${clean.join('')}{"name":"after"}\n`, 'no descriptor or lock is left')
  const left = checkpointFiles(path.join(checkpointDirectory, 'vm1'))
  t.ok(
    left.every((file) => file.startsWith('after.ckp') || file.startsWith('checkpoint.ckp')),
    'no stage is left',
  )
}
