/** Determines which generation of bhyve would read a checkpoint, and whether it can (protocol.md section 6). */
import type { System } from '../../bhyve/dialects.js'
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
  const generation = generationOfSystem(system)
  return generation && { generation, because: `this host runs FreeBSD ${system.release}` }
}

function generationOfSystem({ platform, release }: System): Generation | undefined {
  // These development branches contained two generations of bhyve, so the kernel's release does not determine which.
  if (platform !== 'freebsd' || /^(?:13\.0-(?:CURRENT|STABLE)|14\.0-CURRENT)/.test(release)) return undefined
  const [major = 0, minor = 0] = release.split('.').map((part) => Number.parseInt(part, 10))
  if (major >= 14) return '14'
  if (major !== 13) return undefined
  return minor === 0 ? '13.0' : '13.1'
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
