/** Works on several items of a list at the same time. */

interface Limits {
  /** How many items are worked on at the same time. */
  atOnce: number
  /** How many results may wait for the result of an earlier item. Bounds memory. */
  ahead: number
}

interface Task<R> {
  promise: Promise<void>
  results: R[]
}

/**
 * Yields the results in the order of the items. While one item takes long, the items behind it are worked on. `work`
 * must not reject: nobody may be waiting for its result yet.
 */
export async function* inOrder<T, R>(
  items: AsyncIterable<T>,
  { atOnce, ahead }: Limits,
  work: (item: T) => Promise<R>,
): AsyncGenerator<R, void, undefined> {
  const tasks: Task<R>[] = []
  const running = new Set<Promise<void>>()
  for await (const item of items) {
    tasks.push(started(work(item), running))
    while (running.size >= atOnce || tasks.length >= ahead) {
      await Promise.race(running)
      yield* endedFirst(tasks)
    }
    yield* endedFirst(tasks)
  }
  for (const { promise, results } of tasks) {
    await promise
    yield* results
  }
}

function started<R>(result: Promise<R>, running: Set<Promise<void>>): Task<R> {
  const results: R[] = []
  const promise = result.then((value) => {
    results.push(value)
    running.delete(promise)
  })
  running.add(promise)
  return { promise, results }
}

/** Removes the ended tasks at the beginning of the list. */
function* endedFirst<R>(tasks: Task<R>[]): Generator<R, void, undefined> {
  while (tasks[0] !== undefined && tasks[0].results.length > 0) yield* tasks.shift()?.results ?? []
}
