import { writeSync } from 'node:fs'

/** The reason why the stand-in does not start: one line for standard error, and bhyve's exit status. */
export class Refusal extends Error {
  readonly status: number

  constructor(status: number, message: string) {
    super(message)
    this.status = status
  }
}

/** The exit statuses in bhyve's sources. The numbers from 64 on are from sysexits(3). */
export const exitStatus = {
  usage: 1,
  cannotRestore: 1,
  cannotStart: 4,
  invalidArgument: 64,
  invalidData: 65,
  cannotListen: 71,
} as const

/** Writes to standard error. Ignores write errors because the exit status reports the failure as well. */
export function printError(text: string): void {
  try {
    writeSync(2, `${text}\n`)
  } catch {
    return
  }
}
