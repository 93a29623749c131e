/** Runs a call that a signal or a timeout can stop, and reports what follows the stop. */
import type { Context } from './command.js'

export interface InterruptibleCall<T> {
  /** For messages: what the call does, and on which VM. */
  doing: string
  start(signal: AbortSignal): Promise<T>
  done(result: T): number
  /** For messages: the state after a stop, before and after bhyve (or reading) was started. */
  left: { beforeStart: string; afterStart: string; afterRollback?: string }
  /** Reports the result of work that was started before the stop, once it has ended. */
  afterwards(): Promise<void>
  /** Once started, bhyve may die if this process exits before bhyve has finished, and the VM dies with it. */
  holdsVm?: boolean
  /** The started work does not need this process, or the user accepts the risk, and may never end. */
  isLeft?: boolean
}

/** A signal or a timeout has stopped the call. */
interface Stop {
  isInterrupt: boolean
  begun: boolean
  /** The disks are being put back. That needs this process, and ends. */
  rollingBack: boolean
  why: string
  /** Absent if `why` includes it. */
  left?: string
}

/** Runs the call. Resolves with the exit status. */
export async function interruptible<T>(context: Context, call: InterruptibleCall<T>): Promise<number> {
  const { client, interrupt, output } = context
  let isHeld = false
  const stillWaiting = (): void => output.notice(waitingNotice(isHeld))
  const signal = interrupt.listen(stillWaiting)
  try {
    return call.done(await call.start(signal))
  } catch (error) {
    const stop = stopOf(context, call, error)
    isHeld = call.holdsVm === true && call.isLeft !== true && stop?.begun === true
    if (stop !== undefined) report(context, call, stop)
    if (stop?.begun === true) {
      signal.addEventListener('abort', stillWaiting)
      await conclude(context, isLeft(call, stop), call)
    } else await client.idle()
    if (stop?.isInterrupt === true) return interrupt.exitStatus
    throw stop === undefined ? error : withOwnMessage(error, stop)
  }
}

function waitingNotice(isHeld: boolean): string {
  const kill = `'kill -9 ${String(process.pid)}' ends this command at once`
  return isHeld
    ? `Still waiting until bhyve has finished the save. ${kill}; some versions of bhyve then die, and the VM with them`
    : `Still waiting. ${kill}`
}

/**
 * Undefined if the call ended by itself. The library's own message about a stop is not used, because it refers to calls
 * of the library.
 */
function stopOf<T>(context: Context, call: InterruptibleCall<T>, error: unknown): Stop | undefined {
  const { api, interrupt, values } = context
  const { doing, left } = call
  const rollingBack = isRollingBack(error)
  const afterStart = rollingBack ? (left.afterRollback ?? left.afterStart) : left.afterStart
  const leftNow = (begun: boolean): string => (begun ? afterStart : left.beforeStart)
  if (error instanceof api.AbortError) {
    const why = `${doing}: interrupted by ${interrupt.received ?? 'a signal'}`
    return { isInterrupt: true, begun: error.begun, rollingBack, why, left: leftNow(error.begun) }
  }
  if (!(error instanceof api.CheckpointError) || error.begun === undefined) return undefined
  const { begun, code, message } = error
  if (code !== 'ERR_TIMEOUT') return { isInterrupt: false, begun, rollingBack, why: message }
  const why = `${doing}: timed out after ${values.text('timeout') ?? 'its timeout'}`
  return { isInterrupt: false, begun, rollingBack, why, left: leftNow(begun) }
}

function report<T>({ interrupt, output }: Context, call: InterruptibleCall<T>, stop: Stop): void {
  const { isInterrupt, begun } = stop
  const message = begun ? `${messageOf(stop)}${whatFollows(call, stop)}` : messageOf(stop)
  if (isInterrupt)
    output.failure({ type: 'cancelled', signal: interrupt.received, begun, message }, [message])
  else if (begun) output.notice(message)
}

function isRollingBack(error: unknown): boolean {
  return error instanceof Error && 'rollingBack' in error && error.rollingBack === true
}

function isLeft<T>(call: InterruptibleCall<T>, stop: Stop): boolean {
  return call.isLeft === true && !stop.rollingBack
}

function whatFollows<T>(call: InterruptibleCall<T>, stop: Stop): string {
  const { holdsVm } = call
  if (isLeft(call, stop)) return '. This command does not wait for it'
  if (stop.rollingBack) return '. Waiting until the disks are back'
  return holdsVm === true ? '. Waiting until bhyve has finished the save' : ''
}

function messageOf({ why, left }: Stop): string {
  return left === undefined ? why : `${why}; ${left}`
}

/** The error that is printed last. If work was started, it has ended by then, so `left` is omitted. */
function withOwnMessage(error: unknown, stop: Stop): Error {
  const message = stop.begun ? stop.why : messageOf(stop)
  return Object.assign(new Error(message, { cause: error }), error)
}

async function conclude<T>(
  { client }: Context,
  isLeftRunning: boolean,
  call: InterruptibleCall<T>,
): Promise<void> {
  if (!isLeftRunning) await client.idle()
  await call.afterwards()
  // The library continues to poll it, maybe forever. Pending output is written before this exit.
  if (isLeftRunning) setImmediate(() => process.exit())
}
