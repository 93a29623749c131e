/** Copies of a checkpoint's disks for another VM. */
import type { Cancellation } from '../../base/cancellation.js'
import { CheckpointError, reasonOf } from '../../base/errors.js'
import { withNote } from './failures.js'
import type { Snapshot } from './snapshots.js'

/** From each recorded path to the path of its copy. */
export type Copies = readonly (readonly [string, string])[]

/** Makes the copies. If that fails or is cancelled, none of them is left. */
export async function makeClones(
  snapshots: readonly Snapshot[],
  as: string,
  cancellation: Cancellation,
): Promise<Copies> {
  const controller = new AbortController()
  const forget = cancellation.onCancel(() => controller.abort())
  const made: Snapshot[] = []
  const copies: [string, string][] = []
  try {
    for (const snapshot of snapshots) {
      cancellation.throwIfCancelled()
      const copied = await snapshot.provider?.clone?.(
        snapshot.record,
        { as, signal: controller.signal },
        snapshot.owner,
      )
      made.push(snapshot)
      copies.push(...copiesOf(snapshot, copied))
    }
    return copies
  } catch (error) {
    throw await withoutClones(error, made, as)
  } finally {
    forget()
  }
}

function copiesOf({ record }: Snapshot, copied: ReadonlyMap<string, string> | undefined): [string, string][] {
  return record.disks.map(({ path }) => {
    const copy = copied?.get(path)
    if (typeof copy === 'string' && copy.startsWith('/')) return [path, copy]
    const message = `The provider of the kind '${record.kind}' returned no absolute path for the copy of '${path}'`
    throw new CheckpointError('ERR_RESTORE_FAILED', message, { path, vmState: 'off' })
  })
}

/** Removes the copies. Returns the error that the call must reject with. */
export async function withoutClones(
  error: unknown,
  snapshots: readonly Snapshot[],
  as: string,
): Promise<unknown> {
  let result = error
  for (const { record, owner, provider } of snapshots) {
    try {
      if (provider?.removeClones === undefined)
        throw new Error(`the provider '${record.kind}' cannot remove them`)
      await provider.removeClones(record, { as }, owner)
    } catch (reason) {
      const why = reasonOf(reason)
      const paths = record.disks.map(({ path }) => `'${path}'`).join(', ')
      result = withNote(
        result,
        `The copies of ${paths} for VM '${as}' were not removed (${why}). Remove them yourself`,
      )
    }
  }
  return result
}
