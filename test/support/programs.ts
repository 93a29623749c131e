/**
 * Programs that a test needs and a machine may not have. Without one the test is skipped, by the program's name and with the
 * command that installs it; `npm test` repeats the list at its end. Where EVERY_PROGRAM is set, a missing one is a failure.
 */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'

export interface Needed {
  skip: string | false
}

/** Options for a test that needs these programs, from the Debian packages of these names where they differ. */
export function needs(...programs: (string | { program: string; from: string })[]): Needed {
  const missing = programs
    .map((one) => (typeof one === 'string' ? { program: one, from: one } : one))
    .filter(({ program }) => spawnSync('sh', ['-c', `command -v ${program}`]).status !== 0)
  const [first] = missing
  if (first === undefined) return { skip: false }
  return skipped(first.program, `apt-get install ${missing.map(({ from }) => from).join(' ')}`)
}

/** What is missing, and the command that brings it. */
export function skipped(what: string, install: string): Needed {
  const reason = `${what} is not installed: ${install}`
  if ((process.env.EVERY_PROGRAM ?? '') !== '') throw new Error(reason)
  const list = process.env.SKIPPED_PROGRAMS
  if (list !== undefined) fs.appendFileSync(list, `${reason}\n`)
  return { skip: reason }
}
