/** Parses the listen queues that netstat(1) of FreeBSD prints. */
import path from 'node:path'

/** `unix  1/0/10                           /var/run/bhyve/vm1`: waiting, incomplete, and at most. */
export function parseListenQueues(text: string | undefined): ReadonlyMap<string, number> {
  const waiting = new Map<string, number>()
  for (const line of (text ?? '').split('\n')) {
    const [, count, socketPath] = /^unix +(\d+)\/\d+\/\d+ +(\/.*)$/.exec(line) ?? []
    if (count !== undefined && count !== '0' && socketPath !== undefined)
      waiting.set(path.normalize(socketPath), Number(count))
  }
  return waiting
}
