/** Shows the progress of calls: one line that is redrawn on a terminal, otherwise one line per phase of each call. */
import type { WriteStream } from 'node:tty'
import type { Progress } from '../index.js'
import { beginningOf, widthOf } from './table.js'
import { formatClock, formatMebibytes } from './values.js'

/** Without a terminal, a longer phase prints another line after this time. */
const plainIntervalMs = 30_000
const measured: readonly Progress['phase'][] = ['saving', 'digesting', 'sending']
const eraseLine = '\r\u001b[K'
const shortestBar = 10
const longestBar = 30

/** Standard output or standard error, which can be a terminal. */
export type Stream = Pick<NodeJS.WritableStream, 'write' | 'on'> &
  Pick<Partial<WriteStream>, 'isTTY' | 'columns' | 'hasColors'>

export class ProgressDisplay {
  readonly #stream: Stream
  #drawn = false
  /** The terminal's line shows this call. Lines of several calls in turn could not be read. */
  #owner: CallProgress | undefined

  constructor(stream: Stream) {
    this.#stream = stream
  }

  /** The progress of one more call. Several calls can run at the same time. */
  call(): CallProgress {
    return new CallProgress((call, progress) => this.#show(call, progress))
  }

  clear(): void {
    if (this.#drawn) this.#stream.write(eraseLine)
    this.#drawn = false
    this.#owner = undefined
  }

  #show(call: CallProgress, progress: Progress): void {
    if (this.#stream.isTTY !== true) {
      const line = call.plainLine(progress)
      if (line !== undefined) this.#stream.write(`${line}\n`)
      return
    }
    this.#owner ??= call
    if (this.#owner !== call) return
    this.#stream.write(`${eraseLine}${call.barLine(progress, this.#stream.columns ?? 80)}`)
    this.#drawn = true
    // This call may have ended without a result that clears the line.
    if (progress.bytes === progress.totalBytes) this.#owner = undefined
  }
}

type Show = (call: CallProgress, progress: Progress) => void

export class CallProgress {
  readonly #show: Show
  #first: Progress | undefined
  #lastLineMs = 0

  constructor(show: Show) {
    this.#show = show
  }

  show(progress: Progress): void {
    this.#show(this, progress)
  }

  barLine(progress: Progress, columns: number): string {
    return barLine(progress, this.#firstOf(progress), columns)
  }

  /** Undefined if this progress needs no line of its own. */
  plainLine(progress: Progress): string | undefined {
    const first = this.#firstOf(progress)
    const isNew = first === progress
    if (!isNew && progress.elapsedMs - this.#lastLineMs < plainIntervalMs) return undefined
    this.#lastLineMs = progress.elapsedMs
    const facts = isNew ? [] : factsOf(progress, first)
    return [`${progress.vm}: ${progress.phase}`, ...facts].join('  ')
  }

  /** The first progress of the same phase. */
  #firstOf(progress: Progress): Progress {
    if (this.#first?.phase !== progress.phase || this.#first.name !== progress.name) this.#first = progress
    return this.#first
  }
}

function barLine(progress: Progress, first: Progress, columns: number): string {
  const { vm, phase, bytes, totalBytes } = progress
  const words = [`${vm} ${phase}`, ...factsOf(progress, first)]
  const room = columns - 1 - widthOf(words.join('  ')) - '  []'.length
  const hasBar = totalBytes !== undefined && totalBytes > 0 && room >= shortestBar
  if (hasBar) words.splice(1, 0, bar(Math.min(1, bytes / totalBytes), Math.min(room, longestBar)))
  return beginningOf(words.join('  '), columns - 1)
}

function bar(fraction: number, width: number): string {
  const full = Math.round(fraction * width)
  return `[${'='.repeat(full)}${' '.repeat(width - full)}]`
}

/** The bytes done, the rate since the phase began, and the time left at that rate. */
function factsOf(progress: Progress, first: Progress): string[] {
  const { phase, bytes, totalBytes, elapsedMs } = progress
  if (!measured.includes(phase)) return []
  const much =
    totalBytes === undefined
      ? formatMebibytes(bytes)
      : `${formatMebibytes(bytes)} of ${formatMebibytes(totalBytes)}`
  const rate = ((bytes - first.bytes) / Math.max(1, elapsedMs - first.elapsedMs)) * 1000
  if (!(rate > 0)) return [much]
  const left = totalBytes === undefined ? [] : [`${formatClock(((totalBytes - bytes) / rate) * 1000)} left`]
  return [much, `${formatMebibytes(rate)}/s`, ...left]
}
