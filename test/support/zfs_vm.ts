/** A VM whose disks are on ZFS, and the calls of the provider as a client makes them. */
import { randomUUID } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import type { Test } from 'tap'
import type { DiskOwner, DiskRecord, DiskSelection } from '../../dist/base/disk_types.js'
import { zfsDisks } from '../../dist/disks/selections.js'
import { ZfsProvider } from '../../dist/disks/zfs/provider.js'
import type { ZfsRecord } from '../../dist/disks/zfs/record.js'
import { inlinePool } from './index.js'
import { command } from './zfs_pool.js'

export const provider = new ZfsProvider(inlinePool())
export const never = new AbortController().signal

/** bhyve arguments with these disks. */
export function argsOf(vm: string, ...disks: string[]): string[] {
  const slots = disks.flatMap((disk, index) => ['-s', `${String(index + 3)},virtio-blk,${disk}`])
  return ['-c', '1', '-m', '256M', '-s', '0,hostbridge', ...slots, vm]
}

export function owner(directory: string, vm = 'vm1', id: string = randomUUID()): DiskOwner {
  return { vm, id, directory }
}

/** `prepare`, `take` and `finish`. */
export async function capture(of: DiskOwner, selection: DiskSelection): Promise<ZfsRecord> {
  const inherit = fs.openSync('/dev/null', 'r')
  try {
    const prepared = await provider.prepare({ ...of, selection, signal: never, inherit })
    const taken = await prepared.take(never)
    return throughJson((await prepared.finish?.(taken)) ?? taken)
  } finally {
    fs.closeSync(inherit)
  }
}

/** Only what the planned record has. */
export async function plan(of: DiskOwner, selection: DiskSelection): Promise<ZfsRecord> {
  const prepared = await provider.prepare({ ...of, selection, signal: never, inherit: 0 })
  return throughJson(prepared.planned)
}

function throughJson(record: DiskRecord): ZfsRecord {
  return JSON.parse(JSON.stringify(record)) as ZfsRecord
}

/** A dataset with one disk image. */
export function diskIn(dataset: string, root: string, text = 'first'): { image: string; mountpoint: string } {
  command(`zfs create ${dataset}`)
  const mountpoint = path.join(root, ...dataset.split('/').slice(1))
  const image = path.join(mountpoint, 'disk.img')
  fs.writeFileSync(image, text)
  return { image, mountpoint }
}

export const named = (...datasets: string[]): DiskSelection => zfsDisks({ datasets })
export const derived = (vm: string, ...disks: string[]): DiskSelection =>
  zfsDisks({ args: argsOf(vm, ...disks) })

/**
 * Puts a `zfs` of the test's own before the real one until the end of the test or until the function is called. It is a
 * shell script, in which $ZFS is the real command.
 */
export function replaceZfs(t: Test, directory: string, script: string): () => void {
  const { PATH = '' } = process.env
  const real = PATH.split(':')
    .concat('/sbin', '/usr/sbin')
    .map((one) => path.join(one, 'zfs'))
    .find((file) => fs.existsSync(file))
  const bin = fs.mkdtempSync(path.join(directory, 'bin-'))
  fs.writeFileSync(path.join(bin, 'zfs'), `#!/bin/sh\nZFS=${real ?? '/bin/false'}\nBIN=${bin}\n${script}\n`, {
    mode: 0o755,
  })
  process.env.PATH = `${bin}:${PATH}`
  const restore = (): void => void (process.env.PATH = PATH)
  t.teardown(restore)
  return restore
}
