/** The option `--disks` of create and suspend. */
import path from 'node:path'
import type { DiskSelection } from '../index.js'
import type { Context, OptionSpec, Values } from './command.js'
import { UsageError } from './usage_error.js'

const auto = 'auto'

export const diskOptions: Readonly<Record<string, OptionSpec>> = {
  disks: {
    value: 'what',
    multiple: true,
    values: [auto, 'zfs:', 'file:'],
    help:
      'Capture disks of the same moment: zfs:<dataset>, file:<image>, or auto for the disks in the bhyve arguments ' +
      "that follow '--'; can be repeated",
  },
  'freeze-timeout': {
    value: 'time',
    help: 'Hold the guest at most this long for --disks (default: 5s)',
  },
}

/** The disks are found in the bhyve arguments after `--`. */
export function isAutomatic(values: Values): boolean {
  return values.list('disks').includes(auto)
}

export async function diskSelections({ api, values, rest }: Context): Promise<DiskSelection[]> {
  const words = values.list('disks').filter((word) => word !== auto)
  const datasets = words.flatMap((word) => valueOf(word, 'zfs:'))
  const files = words.flatMap((word) => valueOf(word, 'file:')).map((file) => path.resolve(file))
  const unknown = words.find((word) => !/^(?:zfs|file):./.test(word))
  if (unknown !== undefined)
    throw new UsageError(`--disks must be zfs:<dataset>, file:<image> or auto, not '${unknown}'`)
  if (isAutomatic(values) && rest.length === 0)
    throw new UsageError("--disks auto needs the VM's bhyve arguments after '--'")
  return [
    ...(datasets.length === 0 ? [] : [api.zfsDisks({ datasets })]),
    ...(files.length === 0 ? [] : [api.fileDisks({ files })]),
    ...(isAutomatic(values) ? await api.disksOf(rest) : []),
  ]
}

function valueOf(word: string, prefix: string): string[] {
  return word.startsWith(prefix) ? [word.slice(prefix.length)] : []
}
