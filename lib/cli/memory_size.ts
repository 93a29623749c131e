/** The total of the progress display for the first checkpoint of a VM. */
import type { Progress } from '../index.js'
import type { Context } from './command.js'

type Report = (progress: Progress) => void

/**
 * Adds the size of the guest's RAM to progress that has no total. The size comes from the bhyve arguments: those after
 * `--`, or those of the running process. It is never passed to the call, which would check the disk space against it. A
 * plan connects to no VM whose request was already sent.
 */
export function withMemorySize({ client, names, rest }: Context, report: Report): Report {
  const [vm = '', name] = names
  let isRequested = false
  let memoryBytes: number | undefined
  const request = async (): Promise<void> => {
    isRequested = true
    const args = rest.length === 0 ? undefined : rest
    // Without an answer, the display has no bar.
    const plan = await client.planCheckpoint(vm, { name, args }).catch(() => undefined)
    memoryBytes = plan?.memoryBytes
  }
  return (progress) => {
    const { phase, bytes, totalBytes } = progress
    if (totalBytes === undefined && phase === 'saving' && !isRequested) void request()
    const total = totalBytes ?? memoryBytes
    report(total === undefined || bytes > total ? progress : { ...progress, totalBytes: total })
  }
}
