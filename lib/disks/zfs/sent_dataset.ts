/** A dataset that a move sends to another host, as the two hosts agree on it. The other host is not trusted. */
import { isDatasetName } from './names.js'

export interface SentDataset {
  dataset: string
  /** The space that it occupies on the host that sends it. */
  bytes: number
  /** Where it is mounted there. Absent for a volume. */
  mountpoint?: string | undefined
  /** The absolute paths of the VM's disks in it. */
  paths: readonly string[]
}

export const maxSentDatasets = 64
const maxPaths = 256

export function isSentDataset(value: unknown): value is SentDataset {
  if (typeof value !== 'object' || value === null) return false
  const { dataset, bytes, mountpoint, paths } = value as Record<string, unknown>
  return (
    typeof dataset === 'string' &&
    isDatasetName(dataset) &&
    Number.isSafeInteger(bytes) &&
    (bytes as number) >= 0 &&
    (mountpoint === undefined || isPath(mountpoint)) &&
    Array.isArray(paths) &&
    paths.length <= maxPaths &&
    paths.every(isPath)
  )
}

function isPath(value: unknown): boolean {
  return typeof value === 'string' && value.startsWith('/') && value.length <= 4096 && !value.includes('\0')
}
