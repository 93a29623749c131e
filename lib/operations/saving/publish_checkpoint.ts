/** Publishes a complete checkpoint from its stage under its name. */
import type { CommitPoint } from '../../base/cancellation.js'
import { traceDecision } from '../../base/trace.js'
import type { Checkpoint, Dialect } from '../../base/types.js'
import { hostFacts } from '../../checkpoint/host.js'
import { newManifest } from '../../checkpoint/manifest.js'
import { usualSliceBytes } from '../../checkpoint/slice.js'
import type { RecordedArguments } from '../../checkpoint/recorded_arguments.js'
import type { Stage } from '../../store/stage.js'
import type { Labels } from '../../base/labels.js'
import type { Content } from '../../store/staging/memory_scan.js'
import type { ProgressReporter } from '../progress.js'
import type { PublicationSettings } from '../settings.js'
import type { CompleteCheckpoint } from './judge.js'
import type { FrozenFacts } from './no_freeze.js'

interface Publishing {
  vm: string
  name: string
  settings: PublicationSettings
  dialect: Dialect
  poweredOff: boolean
  labels: Labels
  /** Undefined if there was no disk space for the digests. */
  content: Content | undefined
  frozen?: FrozenFacts
  recorded: RecordedArguments | undefined
}

/** Can be cancelled up to the commit point. */
export async function publish(
  stage: Stage,
  { inspection, memoryBytes, savedMs }: CompleteCheckpoint,
  publishing: Publishing,
  progress: ProgressReporter,
  commitPoint: CommitPoint,
): Promise<Checkpoint> {
  const { vm, name, settings, dialect, poweredOff, labels, content, frozen, recorded } = publishing
  // Use the time of the last write, not of the publication: the checkpoint does not include later changes to the disks.
  const host = hostFacts()
  const known = { vm, name, createdAt: new Date(savedMs), dialect, poweredOff, labels, host, ...frozen }
  const facts = { ...known, arguments: recorded }
  const publication = { name, ...settings, manifest: newManifest(facts, { ...inspection, ...content }) }
  progress.report('syncing')
  // An fsync can take long: a cancel still has its effect meanwhile, and other jobs need a free thread.
  if (settings.durable || memoryBytes > usualSliceBytes) await stage.prepare(publication)
  progress.report('publishing')
  const checkpoint = await stage.commit(publication, commitPoint)
  traceDecision(vm, 'published', { path: checkpoint.path })
  return checkpoint
}
