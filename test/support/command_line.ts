/** Helpers for the tests of the command line: a running VM, and a VM with checkpoints. */
import path from 'node:path'
import { createClient } from 'bhyve-checkpoint'
import { CliWorld } from './cli.js'
import { needs } from './programs.js'

export const running = async (world: CliWorld): Promise<void> => {
  await world.start({ vm: 'vm1' })
}
/** A running VM with the checkpoints `a` and `b`. */
export const saved = async (world: CliWorld): Promise<void> => {
  await running(world)
  const { runDirectory, checkpointDirectory } = world
  const client = createClient({ runDirectory, checkpointDirectory })
  for (const name of ['a', 'b']) await client.createCheckpoint('vm1', { name })
}
export const setFile = (world: CliWorld, name: string): string =>
  path.join(world.checkpointDirectory, 'vm1', name)
export const bhyveArguments = [
  '-c2',
  '-m1M',
  '-s0,hostbridge',
  '-s2,ahci-cd,/cd',
  '-s3,virtio-blk,/d',
  '-s4,virtio-net,tap0',
  '-s31,lpc',
  '-o',
  'rundir=<run>',
  'vm1',
]

export const inMode = { pipe: {}, terminal: needs('python3') }
