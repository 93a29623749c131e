/** From a whole set in the stage to the checkpoint under its name. */
import type { CommitPoint } from '../../base/cancellation.js'
import { traceDecision } from '../../base/trace.js'
import type { Checkpoint, Dialect } from '../../base/types.js'
import { hostFacts } from '../../checkpoint/host.js'
import { newManifest } from '../../checkpoint/manifest.js'
import type { Stage } from '../../store/stage.js'
import type { Content } from '../../store/staging/memory_pass.js'
import type { ProgressReporter } from '../progress.js'
import type { PublicationSettings } from '../settings.js'
import type { WholeSet } from './judge.js'

interface Publishing {
  vm: string
  name: string
  settings: PublicationSettings
  dialect: Dialect
  poweredOff: boolean
  /** Undefined where there was no room for it. */
  content: Content | undefined
}

/** Cancelled until the commit point, and not from there on. */
export async function publish(
  stage: Stage,
  { inspection, savedMs }: WholeSet,
  { vm, name, settings, dialect, poweredOff, content }: Publishing,
  progress: ProgressReporter,
  commitPoint: CommitPoint,
): Promise<Checkpoint> {
  // As old as its last byte: what has changed on the VM's disks since then does not belong to it.
  const facts = { vm, name, createdAt: new Date(savedMs), dialect, poweredOff, host: hostFacts() }
  const publication = { name, ...settings, manifest: newManifest(facts, { ...inspection, ...content }) }
  progress.report('syncing')
  await stage.prepare(publication)
  progress.report('publishing')
  const checkpoint = await stage.commit(publication, commitPoint)
  traceDecision(vm, 'published', { path: checkpoint.path })
  return checkpoint
}
