/** A call that may be interrupted, and what is said and waited for then. */
import type { Context } from './command.js'

export interface InterruptibleCall<T> {
  start(signal: AbortSignal): Promise<T>
  done(result: T): number
  /** What has come of what was begun, once that has ended. */
  afterwards(): Promise<void>
  /** What was begun needs nobody, and may never end: it is left alone. */
  isLeft?: boolean
}

/** Resolves with the exit status. */
export async function interruptible<T>(context: Context, call: InterruptibleCall<T>): Promise<number> {
  const { interrupt, output } = context
  const pid = String(process.pid)
  const stillWaiting = (): void => {
    output.notice(`still waiting: leaving now could end the VM (kill -9 ${pid} if it has to be)`)
  }
  const signal = interrupt.listen(stillWaiting)
  const whatFollows = call.isLeft === true ? 'It is left to itself' : 'Waiting until bhyve has ended its work'
  try {
    return call.done(await call.start(signal))
  } catch (error) {
    if (!(error instanceof context.api.AbortError)) {
      if (goesOn(error)) {
        output.notice(`${forPeople(error.message)}. ${whatFollows}`)
        signal.addEventListener('abort', stillWaiting)
        await conclude(context, call)
      } else await context.client.idle()
      throw error
    }
    const message = `${forPeople(error.message)}. ${whatFollows}`
    output.failure({ type: 'cancelled', signal: interrupt.received, message }, [message])
    await conclude(context, call)
    return interrupt.exitStatus
  }
}

async function conclude<T>({ client }: Context, call: InterruptibleCall<T>): Promise<void> {
  if (call.isLeft !== true) await client.idle()
  await call.afterwards()
  // The library goes on looking at it, maybe for ever; what is still to be said is said before.
  if (call.isLeft === true) setImmediate(() => process.exit())
}

/** Without what programs would call next: this one does it. */
export function forPeople(message: string): string {
  return message.replace(/ \(client\.idle\(\)[^)]*\)/, '')
}

/** We gave up; bhyve did not. */
function goesOn(error: unknown): error is Error {
  return (
    error instanceof Error && 'code' in error && ['ERR_TIMEOUT', 'ERR_STALLED'].includes(String(error.code))
  )
}
