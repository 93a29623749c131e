/** Checks the option `disks` against the providers of a client. */
import { invalid } from '../base/assertions.js'
import type { DiskSelection } from '../base/disk_types.js'
import type { DiskProviders } from '../disks/providers.js'

/** Throws `ERR_INVALID_OPTION` if a selection has no provider. */
export function assertProvided(providers: DiskProviders, disks: readonly DiskSelection[]): void {
  const unknown = disks.find(({ kind }) => !providers.has(kind))
  if (unknown === undefined) return
  const kinds = providers.kinds.map((kind) => `'${kind}'`).join(', ')
  throw invalid(`The option 'disks' has a kind without a provider. This client has ${kinds}`, unknown.kind)
}
