/**
 * Combines concurrent requests into one job. All requests that arrive before a job begins are handled by it. Used for
 * reservations: hundreds of VMs may each need the reservations of all others. One read per VM would cost time quadratic
 * in the number of VMs.
 */
export class Batch<Request, Result> {
  readonly #run: (requests: Request[]) => Promise<Result[]>
  readonly #most: number
  /** The last job that has not begun yet. New requests are added to it. */
  #next: { requests: Request[]; results: Promise<Result[]> } | undefined
  #running: Promise<unknown> = Promise.resolve()

  /** `run` returns a result for each request, in the same order. `most`: requests of one job. */
  constructor(run: (requests: Request[]) => Promise<Result[]>, most = Infinity) {
    this.#run = run
    this.#most = most
  }

  /** Resolves with the result of a job that began after this call. */
  async add(request: Request): Promise<Result> {
    if (this.#next === undefined || this.#next.requests.length >= this.#most) this.#next = this.#queued()
    const { requests, results } = this.#next
    const index = requests.push(request) - 1
    return (await results)[index] as Result
  }

  #queued(): { requests: Request[]; results: Promise<Result[]> } {
    const requests: Request[] = []
    const begin = (): Promise<Result[]> => {
      if (this.#next?.requests === requests) this.#next = undefined
      return this.#run(requests)
    }
    const results = this.#running.then(begin, begin)
    this.#running = results
    return { requests, results }
  }
}

/** A batch for each key. Used for records that need the lock of a VM: a second job would find it busy. */
export class Batches<Request, Result> {
  readonly #run: (key: string, requests: Request[]) => Promise<Result[]>
  readonly #most: number
  readonly #batches = new Map<string, { batch: Batch<Request, Result>; waiting: number }>()

  constructor(run: (key: string, requests: Request[]) => Promise<Result[]>, most: number) {
    this.#run = run
    this.#most = most
  }

  async add(key: string, request: Request): Promise<Result> {
    const entry = this.#batches.get(key) ?? { batch: this.#batchFor(key), waiting: 0 }
    this.#batches.set(key, entry)
    entry.waiting++
    try {
      return await entry.batch.add(request)
    } finally {
      if (--entry.waiting === 0) this.#batches.delete(key)
    }
  }

  #batchFor(key: string): Batch<Request, Result> {
    return new Batch((requests) => this.#run(key, requests), this.#most)
  }
}
