/** What the tests share: scratch folders, VMs, waiting for a condition. */
import { execFile } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { CheckpointError } from 'bhyve-checkpoint'
import fc from 'fast-check'
import type { Test } from 'tap'
import { isFailure } from '../../dist/base/native.js'
import { jobs } from '../../dist/worker/jobs.js'
import type { JobRunner } from '../../dist/pool/pool.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import './plain_children.js'

const native = loadSimulatorNative()

export const fixtures = fileURLToPath(new URL('../fixtures', import.meta.url))

/** A folder that goes with the test. */
export function scratch(t: Test): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'bc-'))
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }))
  return directory
}

/**
 * One assertion for a property tried with many values: a failure shows the smallest one found, and the seed with which
 * it comes back. `PROPERTY_RUNS=20` tries twenty times as often.
 */
export async function holds(
  t: Test,
  what: string,
  property: fc.IRawProperty<unknown>,
  runs: number,
): Promise<void> {
  const factor = Number(process.env.PROPERTY_RUNS ?? '1')
  try {
    await fc.assert(property, { numRuns: Math.ceil(runs * factor) })
    t.pass(what)
  } catch (error) {
    const { message, cause } = error as Error
    t.fail(`${what}: ${message}\nbecause of ${cause instanceof Error ? cause.stack : String(cause)}`)
  }
}

/** Resolves once `condition` holds; rejects after `deadlineMs`. */
export async function until(
  condition: () => boolean | Promise<boolean>,
  what: string,
  deadlineMs = 20_000,
): Promise<void> {
  const end = performance.now() + deadlineMs
  while (!(await condition())) {
    if (performance.now() > end) throw new Error(`not within ${deadlineMs} ms: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

/** The rejection of a promise, which must be a CheckpointError. */
export async function rejection(promise: Promise<unknown>): Promise<CheckpointError> {
  try {
    await promise
  } catch (error) {
    if (error instanceof CheckpointError) return error
    throw error
  }
  throw new Error('it should have rejected')
}

/** Every path below a directory, relative and sorted; folders end in a slash. */
export function tree(directory: string): string[] {
  if (!fs.existsSync(directory)) return []
  const entries = fs.readdirSync(directory, { recursive: true, withFileTypes: true })
  return entries
    .map(
      (entry) =>
        path.relative(directory, path.join(entry.parentPath, entry.name)) + (entry.isDirectory() ? '/' : ''),
    )
    .sort()
}

/** Where below `root` the folder of a descriptor is: not every system can say it of the descriptor. */
export function pathOfFolder(descriptor: number, root: string): string {
  const { dev, ino } = fs.fstatSync(descriptor, { bigint: true })
  const folders = tree(root).filter((entry) => entry.endsWith('/'))
  const found = [root, ...folders.map((folder) => path.join(root, folder.slice(0, -1)))].find((folder) => {
    const status = fs.statSync(folder, { bigint: true, throwIfNoEntry: false })
    return status?.dev === dev && status.ino === ino
  })
  if (found === undefined) throw new Error(`descriptor ${descriptor} is no folder below ${root}`)
  return found
}

/** The tree without an empty `.staging`, which stays where checkpoints are for the sake of the lock. */
export function checkpointFiles(directory: string): string[] {
  return tree(directory).filter((entry) => entry !== '.staging/')
}

/** Names and contents of a set's files: equal before and after means untouched. */
export function contents(directory: string): Record<string, string> {
  const files = checkpointFiles(directory).filter((file) => !file.endsWith('/'))
  return Object.fromEntries(
    files.map((file) => [file, fs.readFileSync(path.join(directory, file), 'base64')]),
  )
}

/** The next warning of this process, kept off standard error. */
export function firstWarning(): Promise<Error> {
  process.removeAllListeners('warning')
  return new Promise((resolve) => process.once('warning', resolve))
}

export function openDescriptors(): number {
  return fs.readdirSync('/dev/fd').length
}

export interface Ended {
  code: number | null
  signal: string | null
  stdout: string
  stderr: string
}

/** Without what the test runner wants to be loaded into every child. */
export function childEnvironment(extra: Record<string, string> = {}): NodeJS.ProcessEnv {
  return { ...process.env, NODE_OPTIONS: '', ...extra }
}

/** Runs a script of `test/support` in a process of its own and waits for its end. */
export function runScript(
  script: string,
  args: readonly string[],
  env: Record<string, string> = {},
): Promise<Ended> {
  const file = fileURLToPath(new URL(script, import.meta.url))
  return new Promise((resolve) => {
    const options = { env: childEnvironment(env), timeout: 60_000 }
    const child = execFile(process.execPath, [file, ...args], options, (_error, stdout, stderr) => {
      resolve({ code: child.exitCode, signal: child.signalCode, stdout, stderr })
    })
  })
}

/** A listener that the test serves itself: `serve` gets bhyve's folder, before the connection is closed. */
export function serveByHand(
  t: Test,
  directory: string,
): { serve: (work: (folder: string) => void) => Promise<void> } {
  const listener = native.simulator.listenStream(path.join(directory, 'vm1'), 5)
  if (isFailure(listener)) throw new Error('listen')
  t.teardown(() => native.close(listener))
  const serve = async (work: (folder: string) => void): Promise<void> => {
    let request = Buffer.alloc(0)
    let connection = -1
    await until(() => {
      const accepted = connection === -1 ? native.simulator.accept(listener) : connection
      if (isFailure(accepted)) return false
      connection = accepted
      const bytes = native.simulator.receive(connection, 4096)
      if (!isFailure(bytes)) request = Buffer.concat([request, bytes])
      return !isFailure(bytes) && bytes.length === 0
    }, 'a request')
    work(/\/[^\0]*\/in(?=\/ckp)/.exec(request.toString('latin1'))![0])
    native.close(connection)
  }
  return { serve }
}

type JobName = keyof typeof jobs
type Call = (...args: never[]) => unknown

/**
 * The pool's jobs on this thread, where their calls can be made to fail. `instead` may answer a job itself, or
 * return undefined.
 */
export function inlinePool(instead?: (name: JobName) => Promise<unknown> | undefined): JobRunner {
  return {
    emptied: () => Promise.resolve(),
    run: async ({ name, args }, onStart) => {
      const answer = instead?.(name as JobName)
      if (answer !== undefined) await answer
      onStart?.()
      return answer ?? (jobs[name as JobName] as Call)(...(args as never[]))
    },
  }
}

/** Replaces a native call for the length of a test: `instead` answers, or returns undefined. */
export function intercept(
  t: Test,
  name: keyof typeof native,
  instead: (...args: unknown[]) => unknown,
): () => void {
  const target = native as unknown as Record<string, (...args: unknown[]) => unknown>
  const original = target[name]!
  target[name] = (...args) => instead(...args) ?? original(...args)
  const restore = (): void => {
    target[name] = original
  }
  t.teardown(restore)
  return restore
}

/** What a native call says that has failed. */
export function failure(
  code: keyof typeof os.constants.errno,
  syscall: string,
): { errno: number; syscall: string } {
  return { errno: os.constants.errno[code], syscall }
}
