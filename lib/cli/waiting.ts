/** A call that may be interrupted, and what is said and waited for then. */
import type { Context } from './command.js'

interface InterruptibleCall<T> {
  /** For messages: what it does, and on which VM. */
  doing: string
  start(signal: AbortSignal): Promise<T>
  done(result: T): number
  /** What a stop leaves where nothing had begun, and where something had. */
  left: { beforeStart: string; afterStart: string }
  /** What has come of what was begun, once that has ended. */
  afterwards(): Promise<void>
  /** Of what was begun: a bhyve that may die, and its VM with it, when this process leaves before its end. */
  holdsVm?: boolean
  /** What was begun needs nobody, and may never end: it is left alone. */
  isLeft?: boolean
}

/** Nobody waits any more. */
interface Stop {
  isInterrupt: boolean
  begun: boolean
  why: string
  /** Absent where `why` says it. */
  left?: string
}

/** Resolves with the exit status. */
export async function interruptible<T>(context: Context, call: InterruptibleCall<T>): Promise<number> {
  const { client, interrupt, output } = context
  let isHeld = false
  const stillWaiting = (): void => output.notice(waitingNotice(isHeld))
  const signal = interrupt.listen(stillWaiting)
  try {
    return call.done(await call.start(signal))
  } catch (error) {
    const stop = stopOf(context, call, error)
    isHeld = call.holdsVm === true && stop?.begun === true
    if (stop !== undefined) report(context, call, stop)
    if (stop?.begun === true) {
      signal.addEventListener('abort', stillWaiting)
      await conclude(context, call)
    } else await client.idle()
    if (stop?.isInterrupt === true) return interrupt.exitStatus
    throw stop === undefined ? error : inOurWords(error, stop)
  }
}

function waitingNotice(isHeld: boolean): string {
  const harm = isHeld ? ': leaving now could end the VM' : ''
  return `still waiting${harm} (kill -9 ${String(process.pid)} if it has to be)`
}

/** Undefined where the call ended by itself. What the library says of a stop is for programs: it names their next call. */
function stopOf<T>(context: Context, call: InterruptibleCall<T>, error: unknown): Stop | undefined {
  const { api, interrupt, values } = context
  const { doing, left } = call
  const leftNow = (begun: boolean): string => (begun ? left.afterStart : left.beforeStart)
  if (error instanceof api.AbortError) {
    const why = `${doing}: stopped by ${interrupt.received ?? 'a signal'}`
    return { isInterrupt: true, begun: error.begun, why, left: leftNow(error.begun) }
  }
  if (!(error instanceof api.CheckpointError) || error.begun === undefined) return undefined
  const { begun, code, message } = error
  if (code !== 'ERR_TIMEOUT') return { isInterrupt: false, begun, why: message }
  const why = `${doing}: not done after ${values.text('timeout') ?? 'its time'}`
  return { isInterrupt: false, begun, why, left: leftNow(begun) }
}

function report<T>({ interrupt, output }: Context, call: InterruptibleCall<T>, stop: Stop): void {
  const { isInterrupt, begun } = stop
  const message = begun ? `${inWords(stop)}${whatFollows(call)}` : inWords(stop)
  if (isInterrupt)
    output.failure({ type: 'cancelled', signal: interrupt.received, begun, message }, [message])
  else if (begun) output.notice(message)
}

function whatFollows<T>({ isLeft, holdsVm }: InterruptibleCall<T>): string {
  if (isLeft === true) return '. It is left to itself'
  return holdsVm === true ? '. Waiting until bhyve has ended its work' : ''
}

function inWords({ why, left }: Stop): string {
  return left === undefined ? why : `${why}; ${left}`
}

/** The same error for the end of the output; what was left meanwhile is over by then. */
function inOurWords(error: unknown, stop: Stop): Error {
  const message = stop.begun ? stop.why : inWords(stop)
  return Object.assign(new Error(message, { cause: error }), error)
}

async function conclude<T>({ client }: Context, call: InterruptibleCall<T>): Promise<void> {
  if (call.isLeft !== true) await client.idle()
  await call.afterwards()
  // The library goes on looking at it, maybe for ever; what is still to be said is said before.
  if (call.isLeft === true) setImmediate(() => process.exit())
}
