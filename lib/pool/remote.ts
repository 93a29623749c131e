/**
 * Jobs as their callers see them: the same functions, which run in a thread. The callers import the type of the room's
 * `jobs.ts` only, so that none of its code is loaded on their thread.
 */
import type { JobKind } from './messages.js'
import type { JobRunner } from './pool.js'

/** A room's jobs, each of which resolves with what the function returns. */
export type Remote<Jobs> = {
  [Name in keyof Jobs]: Jobs[Name] extends (...args: infer Args) => infer Result
    ? (...args: Args) => Promise<Result>
    : never
}

/** Runs a job in another way than at once, as after waiting for a lock. */
type Around = (name: string, attempt: () => Promise<unknown>) => Promise<unknown>

interface RemoteOptions<Jobs> {
  /** Those that are not `short`. */
  kinds?: Partial<Record<keyof Jobs, JobKind>>
  /** Called when a thread takes the job; what it throws rejects the job instead. */
  onStart?: () => void
  around?: Around
}

/** What the language asks of any object: whoever awaits or prints this one must start no job. */
const notJobs: ReadonlySet<string> = new Set(['then', 'toJSON', 'constructor'])

/** The jobs of a room, run by `pool`. */
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
