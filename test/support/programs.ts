/**
 * Skips a test if a program that it needs is not installed. The reason names the program and the command that installs
 * it. `npm test` lists the reasons at its end. If EVERY_PROGRAM is set, a missing program is a failure.
 */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'

export interface Needed {
  skip: string | false
}

/** The options for a test that needs these programs. `from` names the Debian package if its name differs. */
export function needs(...programs: (string | { program: string; from: string })[]): Needed {
  const missing = programs
    .map((one) => (typeof one === 'string' ? { program: one, from: one } : one))
    .filter(({ program }) => spawnSync('sh', ['-c', `command -v ${program}`]).status !== 0)
  const [first] = missing
  if (first === undefined) return { skip: false }
  return skipped(first.program, `apt-get install ${missing.map(({ from }) => from).join(' ')}`)
}

/** The options for a test that is skipped because `what` is missing. `install` is the command that installs it. */
export function skipped(what: string, install: string): Needed {
  const reason = `${what} is not installed: ${install}`
  if ((process.env.EVERY_PROGRAM ?? '') !== '') throw new Error(reason)
  const list = process.env.SKIPPED_PROGRAMS
  if (list !== undefined) fs.appendFileSync(list, `${reason}\n`)
  return { skip: reason }
}
