/** A call that may be interrupted, and what is said and waited for then. */
import type { Context } from './command.js'

export interface InterruptibleCall<T> {
  start(signal: AbortSignal): Promise<T>
  done(result: T): number
  /** What has come of what was begun, once that has ended. */
  afterwards(): Promise<void>
}

/** Resolves with the exit status. */
export async function interruptible<T>(context: Context, call: InterruptibleCall<T>): Promise<number> {
  const { interrupt, client, output } = context
  const pid = String(process.pid)
  const stillWaiting = (): void => {
    output.notice(`still waiting: leaving now could end the VM (kill -9 ${pid} if it has to be)`)
  }
  const signal = interrupt.listen(stillWaiting)
  try {
    return call.done(await call.start(signal))
  } catch (error) {
    if (!(error instanceof context.api.AbortError)) {
      if (goesOn(error)) {
        output.notice(`${forPeople(error.message)}. Waiting until bhyve has ended its work`)
        signal.addEventListener('abort', stillWaiting)
        await client.idle()
        await call.afterwards()
      } else await client.idle()
      throw error
    }
    const message = `${forPeople(error.message)}. Waiting until bhyve has ended its work`
    output.failure({ type: 'cancelled', signal: interrupt.received, message }, [message])
    await client.idle()
    await call.afterwards()
    return interrupt.exitStatus
  }
}

/** Without what programs would call next: this one does it. */
function forPeople(message: string): string {
  return message.replace(/ \(client\.idle\(\)[^)]*\)/, '')
}

/** We gave up; bhyve did not. */
function goesOn(error: unknown): error is Error {
  return (
    error instanceof Error && 'code' in error && ['ERR_TIMEOUT', 'ERR_STALLED'].includes(String(error.code))
  )
}
