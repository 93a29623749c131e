/** Shows the progress of a call: one line that is redrawn on a terminal, otherwise one line per phase. */
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
  #first: Progress | undefined
  #lastLineMs = 0

  constructor(stream: Stream) {
    this.#stream = stream
  }

  show(progress: Progress): void {
    const isNew = this.#first?.phase !== progress.phase || this.#first.name !== progress.name
    if (isNew) this.#first = progress
    const first = this.#first ?? progress
    if (this.#stream.isTTY === true) this.#draw(barLine(progress, first, this.#stream.columns ?? 80))
    else if (isNew || progress.elapsedMs - this.#lastLineMs >= plainIntervalMs)
      this.#line(progress, first, isNew)
  }

  clear(): void {
    if (this.#drawn) this.#stream.write(eraseLine)
    this.#drawn = false
  }

  #draw(line: string): void {
    this.#stream.write(`${eraseLine}${line}`)
    this.#drawn = true
  }

  #line(progress: Progress, first: Progress, isNew: boolean): void {
    this.#lastLineMs = progress.elapsedMs
    const facts = isNew ? [] : factsOf(progress, first)
    this.#stream.write(`${[`${progress.vm}: ${progress.phase}`, ...facts].join('  ')}\n`)
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
