/** The selections of the built-in providers. Callers pass them as the option `disks`. */
import { assertBoolean, assertOptions, invalid } from '../base/assertions.js'
import type { DiskSelection } from '../base/disk_types.js'

/**
 * Selects ZFS datasets or volumes: by name, or those that the VM's bhyve arguments use. A dataset that is found in the
 * arguments must hold nothing but the disks of this VM. A dataset that is named is captured as it is. Throws
 * `ERR_INVALID_OPTION`.
 *
 * @example
 * await client.createCheckpoint('vm1', { disks: [zfsDisks({ datasets: ['tank/vm1'] })] })
 */
export function zfsDisks(options: {
  datasets?: readonly string[] | undefined
  args?: readonly string[] | undefined
}): DiskSelection {
  assertOptions(options, 'zfsDisks', ['datasets', 'args'])
  const { datasets, args } = options
  assertTexts(datasets, 'datasets')
  assertTexts(args, 'args')
  assertAny({ datasets, args })
  return selection('zfs', { datasets, args })
}

/**
 * Selects image files: by path, or those that the VM's bhyve arguments use. They are cloned into the checkpoint
 * directory, which must be on the same file system, and the file system must be able to clone blocks (XFS, btrfs, ZFS on
 * FreeBSD 15 and later). `allowCopy` copies all bytes where it cannot, while the guest is frozen. Default false. Throws
 * `ERR_INVALID_OPTION`.
 *
 * @example
 * await client.createCheckpoint('vm1', { disks: [fileDisks({ files: ['/vms/vm1.img'] })] })
 */
export function fileDisks(options: {
  files?: readonly string[] | undefined
  args?: readonly string[] | undefined
  allowCopy?: boolean | undefined
}): DiskSelection {
  assertOptions(options, 'fileDisks', ['files', 'args', 'allowCopy'])
  const { files, args, allowCopy = false } = options
  assertTexts(files, 'files')
  assertTexts(args, 'args')
  assertBoolean(allowCopy, 'allowCopy')
  assertAny({ files, args })
  for (const file of files ?? []) {
    if (!file.startsWith('/')) throw invalid("The option 'files' must contain absolute paths", file)
  }
  return selection('file', { files, args, allowCopy })
}

function selection(kind: string, options: Record<string, unknown>): DiskSelection {
  const given = Object.entries(options).filter(([, value]) => value !== undefined)
  return { kind, ...(Object.fromEntries(given) as Record<string, unknown>) }
}

function assertTexts(value: unknown, option: string): void {
  const isValid =
    Array.isArray(value) && value.every((one) => typeof one === 'string' && one !== '' && !one.includes('\0'))
  if (value !== undefined && !isValid)
    throw invalid(`The option '${option}' must be an array of non-empty strings without NUL`, value)
}

function assertAny(options: Record<string, readonly string[] | undefined>): void {
  if (Object.values(options).some((one) => one !== undefined && one.length > 0)) return
  const names = Object.keys(options).map((name) => `'${name}'`)
  throw invalid(`The selection of disks needs ${names.join(' or ')}`, options)
}
