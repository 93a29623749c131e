/** Determines which generation of bhyve would read a checkpoint, and whether it can (protocol.md section 6). */
import { dialectOfSystem, type System } from '../../bhyve/dialects.js'
import { type Generation, systemOf } from '../../checkpoint/generation.js'
import type { CheckpointReport } from '../../store/catalog/restore_records.js'
import type { Dialect } from '../../base/types.js'
import { blocker, type Blocker } from './findings.js'

export interface Reader {
  generation: Generation
  /** How the generation was determined, for messages. */
  because: string
}

const generations: Readonly<Record<Dialect, Generation>> = { struct: '13.0', path: '13.1', descriptor: '14' }

/** Undefined if the caller named no dialect and the system's release does not determine the generation. */
export function readerOf(dialect: Dialect | 'auto', system: System): Reader | undefined {
  if (dialect !== 'auto') {
    return { generation: generations[dialect], because: `the option 'dialect' is '${dialect}'` }
  }
  const known = dialectOfSystem(system)
  return known && { generation: generations[known], because: `this host runs FreeBSD ${system.release}` }
}

/** Uses the metadata and not the manifest, because bhyve reads only the metadata. */
export function generationBlockers({ generation }: CheckpointReport, reader: Reader | undefined): Blocker[] {
  if (generation === undefined || reader === undefined || reader.generation === generation) return []
  const message =
    `the checkpoint was saved by bhyve of ${systemOf(generation)}, but the bhyve of this host is from ` +
    `${systemOf(reader.generation)} (${reader.because}) and cannot read it: restore it with the FreeBSD release that saved it, ` +
    'shut the guest down there, and then change the release'
  return [blocker('generation-differs', message)]
}
