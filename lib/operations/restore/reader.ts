/** Whose bhyve is going to read a checkpoint, and whether it can (protocol.md section 6). */
import type { System } from '../../bhyve/dialects.js'
import { type Generation, systemOf } from '../../checkpoint/generation.js'
import type { CheckpointReport } from '../../store/catalog/restore_records.js'
import type { Dialect } from '../../base/types.js'
import { blocker, type Blocker } from './findings.js'

export interface Reader {
  generation: Generation
  /** How it is known. */
  because: string
}

const generations: Readonly<Record<Dialect, Generation>> = { struct: '13.0', path: '13.1', descriptor: '14' }

/** Undefined where nobody has named it and the system does not tell: then nothing is claimed. */
export function readerOf(dialect: Dialect | 'auto', system: System): Reader | undefined {
  if (dialect !== 'auto') {
    return { generation: generations[dialect], because: `the client's dialect is '${dialect}'` }
  }
  const generation = generationOfSystem(system)
  return generation && { generation, because: `this host runs FreeBSD ${system.release}` }
}

function generationOfSystem({ platform, release }: System): Generation | undefined {
  // These development branches had both: their kernels say nothing about their bhyve.
  if (platform !== 'freebsd' || /^(?:13\.0-(?:CURRENT|STABLE)|14\.0-CURRENT)/.test(release)) return undefined
  const [major = 0, minor = 0] = release.split('.').map((part) => Number.parseInt(part, 10))
  if (major >= 14) return '14'
  if (major !== 13) return undefined
  return minor === 0 ? '13.0' : '13.1'
}

/** A manifest is not asked: the metadata themselves decide, as they do for bhyve. */
export function generationBlockers({ generation }: CheckpointReport, reader: Reader | undefined): Blocker[] {
  if (generation === undefined || reader === undefined || reader.generation === generation) return []
  const message =
    `bhyve of ${systemOf(generation)} made it, and bhyve of ${systemOf(reader.generation)}, which would read it here ` +
    `(${reader.because}), refuses it. Restore it on the system that made it, and shut the guest down there before you ` +
    'upgrade'
  return [blocker('generation-differs', message)]
}
