/** Lists the checkpoints of many VMs, a few directories ahead of the consumer, so that memory stays bounded. */
import { CheckpointError, detailsOf, reasonOf } from '../base/errors.js'
import type { ListedCheckpoint } from '../base/types.js'

/** How many directories are read ahead. */
const ahead = 3

interface Lister {
  vms: () => Promise<readonly string[]>
  list: (vm: string) => Promise<ListedCheckpoint[]>
  /** Throws if the iteration is cancelled. */
  check: () => void
}

/**
 * Yields the checkpoints VM by VM. A VM that cannot be listed does not end the iteration: its error is thrown after the
 * checkpoints of all other VMs.
 */
export async function* listEach({
  vms,
  list,
  check,
}: Lister): AsyncGenerator<ListedCheckpoint, void, undefined> {
  const waiting = [...(await vms())]
  const begin = (vm: string): Promise<ListedCheckpoint[] | Failed> =>
    list(vm).catch((error: unknown) => ({ vm, error }))
  const begun = waiting.splice(0, ahead).map(begin)
  const failed: Failed[] = []
  for (let next = begun.shift(); next !== undefined; next = begun.shift()) {
    const found = await next
    const following = waiting.shift()
    if (following !== undefined) begun.push(begin(following))
    if (!Array.isArray(found)) failed.push(found)
    for (const checkpoint of Array.isArray(found) ? found : []) {
      check()
      yield checkpoint
    }
    check()
  }
  if (failed.length > 0) throw notListed(failed)
}

interface Failed {
  vm: string
  error: unknown
}

function notListed(failed: readonly Failed[]): unknown {
  const [first] = failed.map(({ error }) => error)
  if (failed.length === 1 || !(first instanceof CheckpointError)) return first
  const reasons = failed.map(({ vm, error }) => `VM '${vm}': ${reasonOf(error)}`).join('; ')
  const { vm: _, ...details } = detailsOf(first)
  const cause = new AggregateError(failed.map(({ error }) => error))
  return new CheckpointError(first.code, `${String(failed.length)} VMs could not be listed. ${reasons}`, {
    ...details,
    cause,
  })
}
