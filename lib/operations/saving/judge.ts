/** Is what bhyve left in the stage a checkpoint? */
import { traceVerdict } from '../../base/trace.js'
import type { Inspection } from '../../checkpoint/structure.js'
import type { Stage } from '../../store/stage.js'
import type { Collected } from '../../store/staging/collect.js'
import type { ProgressReporter } from '../progress.js'

/** A set whose files are all there and fit together. */
export interface WholeSet {
  inspection: Inspection
  memoryBytes: number
  /** When bhyve wrote the last of it, in milliseconds. */
  savedMs: number
}

type Verdict = { kind: 'whole'; set: WholeSet } | { kind: 'broken'; collected: Collected }

/** Takes the files out of bhyve's reach, and looks at them there. */
export async function judge(
  stage: Stage,
  { vm, name }: { vm: string; name: string },
  progress: ProgressReporter,
): Promise<Verdict> {
  progress.report('checking')
  const collected = await stage.collect(name)
  const { problems, inspection, savedMs } = collected
  traceVerdict(vm, problems)
  if (problems.length > 0 || inspection?.metadata === undefined) return { kind: 'broken', collected }
  const { memoryBytes } = inspection.metadata
  progress.saved(memoryBytes)
  return { kind: 'whole', set: { inspection, memoryBytes, savedMs } }
}
