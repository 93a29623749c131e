/** verify. */
import type { VerificationReport } from '../../index.js'
import { describeFailure } from '../checkpoint_text.js'
import type { Command, Context } from '../command.js'
import { exitStatus } from '../exit_status.js'
import { inOrder } from '../in_order.js'
import { naturally } from '../natural_order.js'
import { assertOneOrAll, checkpointLocation } from '../parse.js'
import { UsageError } from '../usage_error.js'
import { formatSize, formatTime, parseDuration } from '../values.js'
import { causeLines } from '../verbose.js'
import { interruptible } from '../waiting.js'
import { noneOf, notFound } from './stored.js'

/**
 * The library's threads always find work while some of these wait for a lock or an fsync. More would only hold more
 * descriptors.
 */
const limits = { atOnce: 8, ahead: 1000 }

export const verify: Command = {
  name: 'verify',
  usage: '<vm> [name ...] | --all',
  summary: "Verify the given checkpoints of a VM, all of the VM's, or those of all VMs",
  example: 'bhyve-checkpoint verify vm1 --content',
  options: {
    all: { help: 'Verify the checkpoints of every VM' },
    content: { help: 'Read all files and compare digests (default: check sizes and metadata)' },
    'older-than': {
      value: 'time',
      help: 'With --content: only those whose content was not verified within this time, e.g. 7d',
    },
  },
  positionals: [0, Infinity],
  run: (context) => {
    assertOneOrAll(context, 'verify')
    const [vm] = context.names
    const depth = depthFrom(context)
    return interruptible(context, {
      doing:
        vm === undefined ? 'Verifying the checkpoints of all VMs' : `Verifying checkpoints of VM '${vm}'`,
      start: (signal) => new Series(context, depth, signal).run(),
      done: (status) => status,
      left: { beforeStart: 'stopped before reading the next checkpoint', afterStart: 'reading stops' },
      afterwards: () => Promise.resolve(),
    })
  },
}

interface Depth {
  content: boolean
  olderThanMs: number | undefined
}

function depthFrom({ values }: Context): Depth {
  const content = values.has('content')
  const olderThanMs = values.parsed('older-than', parseDuration)
  if (olderThanMs !== undefined && !content) throw new UsageError('--older-than needs --content')
  return { content, olderThanMs }
}

/** A checkpoint to be verified. */
interface Subject {
  vm: string
  name: string
  /** It was listed, not named. Its removal in the meantime is not an error. */
  isListed: boolean
  /** Its content was verified recently, at this time. */
  skipped: Date | undefined
}

/** Checkpoints that could not be listed. */
interface Unlisted {
  error: unknown
}

/** Prints the result of one checkpoint, and returns its exit status. */
type Print = () => number

/**
 * Verifies several checkpoints at the same time, and prints the results in the order of the list. A failure does not
 * stop the others. The exit status is the worst one.
 */
class Series {
  readonly #context: Context
  readonly #depth: Depth
  readonly #signal: AbortSignal
  #stop: InstanceType<Context['api']['AbortError']> | undefined

  constructor(context: Context, depth: Depth, signal: AbortSignal) {
    this.#context = context
    this.#depth = depth
    this.#signal = signal
  }

  async run(): Promise<number> {
    const [vm, ...names] = this.#context.names
    const subjects = vm === undefined ? this.#ofEvery() : this.#ofVm(vm, names)
    let status: number = exitStatus.done
    for await (const print of inOrder(subjects, limits, (subject) => this.#verify(subject)))
      status = worse(status, print())
    // After a stop, what was verified before it is printed first.
    if (this.#stop !== undefined) throw this.#stop
    return status
  }

  async *#ofEvery(): AsyncGenerator<Subject | Unlisted, void, undefined> {
    const { api, client, values } = this.#context
    try {
      const vms = (await client.listStored({ signal: this.#signal })).sort(naturally)
      for (const vm of vms) yield* this.#ofVm(vm, [])
      if (vms.length > 0) return
      const message = `There are no checkpoints in ${checkpointLocation(values)}`
      yield { error: new api.CheckpointError('ERR_CHECKPOINT_NOT_FOUND', message) }
    } catch (error) {
      yield { error }
    }
  }

  async *#ofVm(vm: string, names: readonly string[]): AsyncGenerator<Subject | Unlisted, void, undefined> {
    try {
      yield* names.length === 0 ? await this.#listed(vm) : await this.#named(vm, names)
    } catch (error) {
      yield { error }
    }
  }

  /** Fails if there are no checkpoints. Otherwise a nightly check of a misspelled VM would succeed every time. */
  async #listed(vm: string): Promise<Subject[]> {
    const recent = await this.#verifiedTimes(vm)
    if (recent.size === 0) throw notFound(this.#context, noneOf(vm, this.#context.values), vm)
    return [...recent].map(([name, skipped]) => ({ vm, name, isListed: true, skipped }))
  }

  async #named(vm: string, names: readonly string[]): Promise<Subject[]> {
    const needsTimes = this.#depth.olderThanMs !== undefined
    const recent = needsTimes ? await this.#verifiedTimes(vm) : undefined
    return names.map((name) => ({ vm, name, isListed: false, skipped: recent?.get(name) }))
  }

  /** The checkpoints of a VM. For those whose content need not be read again, when it was verified. */
  async #verifiedTimes(vm: string): Promise<Map<string, Date | undefined>> {
    const listed = await this.#context.client.listCheckpoints(vm, { signal: this.#signal })
    const own = listed.filter(({ state }) => state !== 'foreign')
    return new Map(
      own.map(({ name, state, verifiedAt }) => [
        name,
        state === 'complete' && this.#isRecent(verifiedAt) ? verifiedAt : undefined,
      ]),
    )
  }

  /** A time in the future comes from a wrong clock, and proves nothing. */
  #isRecent(verifiedAt: Date | undefined): boolean {
    const { olderThanMs } = this.#depth
    if (olderThanMs === undefined || verifiedAt === undefined) return false
    const ageMs = Date.now() - verifiedAt.getTime()
    return ageMs >= 0 && ageMs < olderThanMs
  }

  async #verify(subject: Subject | Unlisted): Promise<Print> {
    if ('error' in subject) return () => this.#fail(subject.error)
    const { client, output } = this.#context
    const { vm, name, skipped } = subject
    const depth = this.#depth.content && skipped === undefined ? 'content' : 'structure'
    const options = { depth, signal: this.#signal, onProgress: output.onProgress } as const
    try {
      const report = await client.verifyCheckpoint(vm, name, options)
      return () => this.#report(subject, report)
    } catch (error) {
      return () => (this.#isRemoved(subject, error) ? exitStatus.done : this.#fail(error))
    }
  }

  #report({ vm, name, skipped }: Subject, report: VerificationReport): number {
    const { output } = this.#context
    const state = report.ok ? output.paint('good', 'complete') : output.paint('bad', 'damaged')
    const problems = report.problems.map(({ code, message }) => `  ${code}: ${message}`)
    const ofSkipped = skipped === undefined ? {} : { skipped: true, verifiedAt: skipped }
    const message = { type: 'verification', vm, name, ...report, ...ofSkipped }
    const lines = [`${vm}/${name}: ${state} (${extentOf(report, skipped)})`, ...problems]
    if (report.ok) output.confirm(message, lines)
    else output.result(message, lines)
    return report.ok ? exitStatus.done : exitStatus.damaged
  }

  #isRemoved({ vm, name, isListed }: Subject, error: unknown): boolean {
    const { api, output } = this.#context
    if (!isListed || !(error instanceof api.CheckpointError)) return false
    if (error.code !== 'ERR_CHECKPOINT_NOT_FOUND') return false
    output.notice(`Checkpoint '${name}' of VM '${vm}' was removed in the meantime`)
    return true
  }

  #fail(error: unknown): number {
    const { api, output, values } = this.#context
    if (error instanceof api.AbortError) {
      if (this.#stop?.begun !== true) this.#stop = error
      return exitStatus.done
    }
    if (!(error instanceof api.CheckpointError)) throw error
    const { status, message, lines } = describeFailure(error, 'verify')
    output.failure(message, values.has('verbose') ? [...lines, ...causeLines(error)] : lines)
    return status
  }
}

function extentOf({ depth, bytesRead }: VerificationReport, skipped: Date | undefined): string {
  if (depth === 'content') return `content, ${formatSize(bytesRead)} read`
  return skipped === undefined ? 'structure' : `structure; content verified ${formatTime(skipped)}, skipped`
}

/** The first one of two equally bad exit statuses. */
function worse(one: number, other: number): number {
  return severity(other) > severity(one) ? other : one
}

/** Damage is worse than any other failure, after which the state of a checkpoint is unknown. */
function severity(status: number): number {
  if (status === exitStatus.done) return 0
  if (status === exitStatus.stored) return 1
  return status === exitStatus.damaged ? 3 : 2
}
