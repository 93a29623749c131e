/**
 * Writes all output: results to standard output, everything else to standard error. With `--json` everything is written
 * to standard output, one object per line. If the reader of the output exits, the checkpoint must still succeed.
 */
import type { Progress } from '../index.js'
import { visible } from '../base/visible_text.js'
import { exitStatus } from './exit_status.js'
import { withFlags } from './flags.js'
import { ProgressDisplay, type Stream } from './progress_display.js'
import { formatExactTime } from './values.js'

/** An object that `--json` prints. docs/cli.md lists the types. */
export interface Message {
  type: string
  [key: string]: unknown
}

const colours = { good: '\u001b[32m', bad: '\u001b[31m', title: '\u001b[1m' } as const
const plain = '\u001b[0m'

export class Output {
  readonly json: boolean
  readonly #out: Stream
  readonly #err: Stream
  readonly #display: ProgressDisplay | undefined
  #isQuiet = false

  constructor(json: boolean, out: Stream, err: Stream) {
    this.json = json
    this.#out = out
    this.#err = err
    this.#display = json ? undefined : new ProgressDisplay(err)
    for (const stream of [out, err]) stream.on('error', failAtTheEnd)
  }

  /** From now on only results, warnings and errors are printed (`--quiet`). */
  silence(): void {
    this.#isQuiet = true
  }

  /** The columns of the terminal. Undefined if standard output is not a terminal. */
  get width(): number | undefined {
    const { isTTY = false, columns = 0 } = this.#out
    return isTTY && columns > 0 ? columns : undefined
  }

  /** Confirms a change that was made. */
  confirm(message: Message, lines: readonly string[]): void {
    if (this.json || !this.#isQuiet) this.result(message, lines)
  }

  /** Prints what the user requested: the message with `--json`, otherwise the lines. */
  result(message: Message, lines: readonly string[]): void {
    this.#display?.clear()
    if (this.json) this.#print(message)
    else for (const line of lines) this.#out.write(`${shown(line)}\n`)
  }

  /** Prints a line for a person below a list. Scripts count the lines of a list. */
  summary(text: string): void {
    if (this.#out.isTTY === true && !this.#isQuiet) this.#out.write(`${text}\n`)
  }

  /** Prints an event that is not a result. */
  notice(text: string): void {
    if (!this.#isQuiet) this.warn(text)
  }

  /** Prints an event that can require an action. */
  warn(text: string): void {
    this.#display?.clear()
    if (this.json) this.#print({ type: 'notice', message: text })
    else this.#err.write(`${shown(text)}\n`)
  }

  failure(message: Message, lines: readonly string[]): void {
    this.#display?.clear()
    if (this.json) this.#print(message)
    else for (const line of lines) this.#err.write(`${shown(line)}\n`)
  }

  /** A new function for each call, because several calls can run at the same time. */
  get onProgress(): (progress: Progress) => void {
    const shown = this.#display?.call()
    return (progress) => {
      if (this.#isQuiet) return
      if (this.json) this.#print({ type: 'progress', ...progress })
      else shown?.show({ ...progress, vm: visible(progress.vm) })
    }
  }

  /** Colors the text if standard output is a terminal with colors and NO_COLOR is not set. */
  paint(kind: keyof typeof colours, text: string): string {
    const isColoured = this.#out.isTTY === true && this.#out.hasColors?.() === true
    return isColoured && !this.json ? `${colours[kind]}${text}${plain}` : text
  }

  #print(message: Message): void {
    const withOwnFlags = (key: string, value: unknown): unknown =>
      key === 'message' && typeof value === 'string' ? withFlags(value) : value
    this.#out.write(`${JSON.stringify(message, withOwnFlags)}\n`)
  }
}

/** The library's messages have times in UTC. */
const timeInMessage = /\bat (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z)/g

function shown(line: string): string {
  const local = (_: string, time: string): string => `at ${formatExactTime(new Date(time))}`
  return visible(withFlags(line).replace(timeInMessage, local))
}

/** A reader that exited is not an error. Any other failed write is: the command must not report success then. */
function failAtTheEnd(error: NodeJS.ErrnoException): void {
  if (error.code === 'EPIPE') return
  process.once('exit', (status) => {
    if (status === exitStatus.done) process.exitCode = exitStatus.failed
  })
}
