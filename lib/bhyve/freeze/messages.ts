/** What the guard process and the library exchange: one JSON object per line, over a socket that only they have. */

/** The guard's settings, on its command line. */
export interface GuardSettings {
  pid: number
  startedAt: string
  /** The file of guest RAM that bhyve writes, and the last file that it opens before that. */
  memory: string
  metadata: string
  /** The longest hold, in milliseconds. */
  freezeTimeout: number
}

/** Descriptors that the guard inherits. */
export const guardDescriptors = { control: 3, inbox: 4, connection: 5 } as const

export type FromGuard =
  | { kind: 'ready' }
  /** bhyve writes RAM and is stopped. `firstByteNs`: the monotonic time at which RAM was first seen, in nanoseconds. */
  | { kind: 'held'; firstByteNs: string }
  /** The last message: bhyve runs. `expired`: it was continued because the freeze timeout had passed. */
  | { kind: 'continued'; expired: boolean }
  /** The last message: bhyve has ended. */
  | { kind: 'gone' }

/** End the watch and continue bhyve if it is held. */
export type ToGuard = { kind: 'continue' }

/** Calls back with each complete line. */
export function onLines(socket: NodeJS.ReadableStream, callback: (line: string) => void): void {
  let rest = ''
  socket.on('data', (bytes: Buffer) => {
    const lines = (rest + bytes.toString('utf8')).split('\n')
    rest = lines.pop() ?? ''
    for (const line of lines) callback(line)
  })
}
