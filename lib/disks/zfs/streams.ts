/** Runs `zfs send` and `zfs receive`. No shell is involved. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import type { Readable, Writable } from 'node:stream'
import { Collected, endOf, environment, unstarted } from './command.js'

const maxErrorBytes = 4096

/** The stream of one snapshot, without properties and without other snapshots. */
export async function* sendStream(snapshot: string): AsyncGenerator<Buffer, void> {
  const running = start(['send', snapshot], 'stdout')
  try {
    yield* running.stream as Readable as AsyncIterable<Buffer>
    await running.end
  } finally {
    running.child.kill('SIGTERM')
    await running.end.catch(() => undefined)
  }
}

/**
 * Receives a stream as a new dataset, and does not mount it. Resolves or rejects when the command has ended. If the
 * stream is not complete, ZFS removes what it has received.
 */
export async function receiveStream(dataset: string, stream: AsyncIterable<Uint8Array>): Promise<void> {
  const { stream: input, end } = start(['receive', '-u', dataset], 'stdin')
  const into = input as Writable
  // The end of the command has the reason.
  into.on('error', () => undefined)
  let hasEnded = false
  const ending = end.finally(() => (hasEnded = true)).catch(() => undefined)
  try {
    for await (const bytes of stream) {
      if (hasEnded) break
      if (!into.write(bytes)) await Promise.race([once(into, 'drain').catch(() => undefined), ending])
    }
  } catch (error) {
    // The command removes what it has received when its input ends early.
    into.destroy()
    await ending
    throw error
  }
  into.end()
  await end
}

interface Running {
  child: ChildProcess
  stream: Readable | Writable
  /** Rejects if the status is not 0. */
  end: Promise<void>
}

function start(args: readonly string[], which: 'stdin' | 'stdout'): Running {
  const child = spawn('zfs', args, {
    cwd: '/',
    env: environment(),
    stdio: [which === 'stdin' ? 'pipe' : 'ignore', which === 'stdout' ? 'pipe' : 'ignore', 'pipe'],
  })
  const errors = new Collected(maxErrorBytes)
  child.stderr?.on('data', (bytes: Buffer) => errors.add(bytes))
  const end = new Promise<void>((resolve, reject) => {
    child.once('error', (error) => {
      if (child.pid === undefined) reject(unstarted('zfs', error))
    })
    child.once('close', (status, killedBy) => {
      const failure = endOf('zfs', args, { status, killedBy, words: errors.text() })
      if (failure === undefined) resolve()
      else reject(failure)
    })
  })
  end.catch(() => undefined)
  const stream: Readable | Writable | null = child[which]
  if (stream === null) throw new Error(`zfs has no ${which}`)
  return { child, stream, end }
}
