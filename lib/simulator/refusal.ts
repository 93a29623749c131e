import { writeSync } from 'node:fs'

/** Why the stand-in does not start: one line on standard error, and the exit status of the real one. */
export class Refusal extends Error {
  readonly status: number

  constructor(status: number, message: string) {
    super(message)
    this.status = status
  }
}

/** bhyve's own statuses, as its sources use them (those from 64 on are sysexits(3)). */
export const exitStatus = {
  usage: 1,
  cannotRestore: 1,
  cannotStart: 4,
  invalidArgument: 64,
  invalidData: 65,
  cannotListen: 71,
} as const

/** On standard error, whether anybody listens or not: the exit status still tells. */
export function complain(text: string): void {
  try {
    writeSync(2, `${text}\n`)
  } catch {
    return
  }
}
