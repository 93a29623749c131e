/** A store with checkpoints as CBSD writes them, and a client for it. */
import fs from 'node:fs'
import path from 'node:path'
import { type Test } from 'tap'
import { createClient, type CheckpointClient } from 'bhyve-checkpoint'
// @ts-expect-error: a plain module, shared with programs that are not TypeScript
import { writeSet as writeAnySet } from '../crash/sets.mjs'
import { scratch } from './index.js'

const writeSet = writeAnySet as (base: string, tag: number) => void

/** A client with a new store. `put` writes a checkpoint as CBSD or bhyvectl does. */
export function store(t: Test): {
  client: CheckpointClient
  root: string
  directory: string
  put: (name: string, ageMs?: number) => void
} {
  const root = scratch(t)
  const directory = path.join(root, 'vm1')
  fs.mkdirSync(directory)
  const put = (name: string, ageMs = 0): void => {
    writeSet(path.join(directory, `${name}.ckp`), 1)
    const time = new Date(Date.now() - ageMs)
    for (const suffix of ['.ckp', '.ckp.kern', '.ckp.meta'])
      fs.utimesSync(path.join(directory, name + suffix), time, time)
  }
  return { client: createClient({ checkpointDirectory: root }), root, directory, put }
}
