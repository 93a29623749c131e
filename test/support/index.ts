/** Helpers for all tests: temporary directories, conditions to wait for, native calls that fail. */
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
import { takeNotedSnapshots } from '../../dist/store/staging/snapshot_records.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import './plain_children.js'

const native = loadSimulatorNative()

export const fixtures = fileURLToPath(new URL('../fixtures', import.meta.url))

/** A temporary directory that is removed at the end of the test. */
export function scratch(t: Test): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'bc-'))
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }))
  return directory
}

/**
 * One assertion for a property that is checked with many values. A failure shows the smallest counterexample and the
 * seed that reproduces it. `PROPERTY_RUNS=20` checks twenty times as many values.
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
    t.fail(`${what}: ${message}\ncause: ${cause instanceof Error ? cause.stack : String(cause)}`)
  }
}

/** Resolves when `condition` holds. Rejects after `deadlineMs`. */
export async function until(
  condition: () => boolean | Promise<boolean>,
  what: string,
  deadlineMs = 20_000,
): Promise<void> {
  const end = performance.now() + deadlineMs
  while (!(await condition())) {
    if (performance.now() > end) throw new Error(`Timeout after ${deadlineMs} ms: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

/** Resolves with the CheckpointError with which `promise` rejects. Rejects in all other cases. */
export async function rejection(promise: Promise<unknown>): Promise<CheckpointError> {
  try {
    await promise
  } catch (error) {
    if (error instanceof CheckpointError) return error
    throw error
  }
  throw new Error('The promise did not reject')
}

/** All paths below a directory, relative and sorted. Directories end with a slash. A directory that is removed meanwhile counts as empty. */
export function tree(directory: string): string[] {
  return entriesOf(directory)
    .flatMap((entry) => {
      if (!entry.isDirectory()) return [entry.name]
      const below = tree(path.join(directory, entry.name))
      return ['', ...below].map((name) => `${entry.name}/${name}`)
    })
    .sort()
}

function entriesOf(directory: string): fs.Dirent[] {
  try {
    return fs.readdirSync(directory, { withFileTypes: true })
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []
    throw error
  }
}

/** The path below `root` of the directory of a descriptor. Searches for it: not every system can return it directly. */
export function pathOfFolder(descriptor: number, root: string): string {
  const { dev, ino } = fs.fstatSync(descriptor, { bigint: true })
  const directories = tree(root)
    .filter((entry) => entry.endsWith('/'))
    .map((entry) => path.join(root, entry.slice(0, -1)))
  const found = [root, ...directories].find((directory) => {
    const status = fs.statSync(directory, { bigint: true, throwIfNoEntry: false })
    return status?.dev === dev && status.ino === ino
  })
  if (found === undefined) throw new Error(`Descriptor ${descriptor} is not a directory below ${root}`)
  return found
}

/** The tree without `.staging/`, which remains because it holds the lock. */
export function checkpointFiles(directory: string): string[] {
  return tree(directory).filter((entry) => entry !== '.staging/')
}

/** The names and contents of all checkpoint files, to check that a call does not change them. */
export function contents(directory: string): Record<string, string> {
  const files = checkpointFiles(directory).filter((file) => !file.endsWith('/'))
  return Object.fromEntries(
    files.map((file) => [file, fs.readFileSync(path.join(directory, file), 'base64')]),
  )
}

/** Resolves with the next warning of this process. The warning is not printed. */
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

/** The environment without NODE_OPTIONS, with which the test runner loads its hooks into each child. */
export function childEnvironment(extra: Record<string, string> = {}): NodeJS.ProcessEnv {
  return { ...process.env, NODE_OPTIONS: '', ...extra }
}

/** Runs a script of `test/support` in a separate process and waits for its end. */
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

/** A bhyve played by the test. `serve` accepts a request, calls `work` with the inbox and closes the connection. */
export function serveByHand(
  t: Test,
  directory: string,
): { serve: (work: (inbox: string) => void) => Promise<void> } {
  const listener = native.simulator.listenStream(path.join(directory, 'vm1'), 5)
  if (isFailure(listener)) throw new Error('Cannot listen')
  t.teardown(() => native.close(listener))
  const serve = async (work: (inbox: string) => void): Promise<void> => {
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
 * A pool that runs its jobs in this thread, where a test can make their calls fail. `instead` may return a result for a
 * job. If it returns undefined, the job runs.
 */
export function inlinePool(instead?: (name: JobName) => Promise<unknown> | undefined): JobRunner {
  return {
    emptied: () => Promise.resolve(),
    takeNoted: (directory) => takeNotedSnapshots().includes(directory),
    run: async ({ name, args }, onStart) => {
      const replacement = instead?.(name as JobName)
      if (replacement !== undefined) await replacement
      onStart?.()
      return replacement ?? (jobs[name as JobName] as Call)(...(args as never[]))
    },
  }
}

/** Replaces a native call until the end of the test. If `instead` returns undefined, the original call runs. */
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

/** Makes listings read each file with a call of its own, which a test can intercept. */
export function readOneByOne(t: Test): void {
  intercept(t, 'readGroups', (_directory, names, _suffixes, _maxBytes, into) => {
    new Float64Array((into as Uint8Array).buffer).fill(-1)
    return (names as unknown[]).length
  })
}

/** The result of a native call that failed. */
export function failure(
  code: keyof typeof os.constants.errno,
  syscall: string,
): { errno: number; syscall: string } {
  return { errno: os.constants.errno[code], syscall }
}
