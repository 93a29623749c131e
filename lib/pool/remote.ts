/**
 * Calls to jobs in the pool's threads. Callers import only the type of a directory's `jobs.ts`, so that none of its
 * code is loaded on their thread.
 */
import type { JobKind } from './messages.js'
import type { JobRunner } from './pool.js'

/** The jobs of a directory as asynchronous functions. Each resolves with the return value of the job. */
export type Remote<Jobs> = {
  [Name in keyof Jobs]: Jobs[Name] extends (...args: infer Args) => infer Result
    ? (...args: Args) => Promise<Result>
    : never
}

/** Wraps a job, for example to retry it while a lock is held. */
type Around = (name: string, attempt: () => Promise<unknown>) => Promise<unknown>

interface RemoteOptions<Jobs> {
  /** The kinds of jobs that are not `short`. */
  kinds?: Partial<Record<keyof Jobs, JobKind>>
  /** Called when a thread takes the job. If it throws, the job does not run and rejects with that error. */
  onStart?: () => void
  around?: Around
}

/** Properties that `await`, JSON.stringify and the debugger read from any object. Reading them must not start a job. */
const notJobs: ReadonlySet<string> = new Set(['then', 'toJSON', 'constructor'])

/** The jobs of a directory, run by `pool`. */
export function remote<Jobs>(pool: JobRunner, options: RemoteOptions<Jobs> = {}): Remote<Jobs> {
  const { onStart, around } = options
  const kinds: Partial<Record<string, JobKind>> = options.kinds ?? {}
  const call = (name: string): unknown => {
    const kind = kinds[name] ?? 'short'
    return (...args: readonly unknown[]) => {
      const attempt = (): Promise<unknown> => pool.run({ name, kind, args }, onStart)
      return around === undefined ? attempt() : around(name, attempt)
    }
  }
  const get = (_target: object, name: string | symbol): unknown =>
    typeof name === 'symbol' || notJobs.has(name) ? undefined : call(name)
  return new Proxy({}, { get }) as Remote<Jobs>
}
