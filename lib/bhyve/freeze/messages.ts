/** What the guard process and the library exchange: one JSON object per line, over a socket that only they have. */

/** The guard's settings, on its command line. */
export interface GuardSettings {
  pid: number
  startedAt: string
  dialect: string | undefined
  /** The file of guest RAM that bhyve writes, and the last file that it opens before that. */
  memory: string
  metadata: string
  /** The record that bhyve is held, and the one that it was continued although the library was gone. Paths from the inbox. */
  holdRecord: string
  continuedRecord: string
  /** The longest hold, in milliseconds. */
  freezeTimeout: number
}

/** Descriptors that the guard inherits. */
export const guardDescriptors = { control: 3, inbox: 4, connection: 5 } as const

export type FromGuard =
  | { kind: 'ready' }
  /** bhyve writes RAM and is stopped. `firstByteNs`: the monotonic time at which RAM was first seen, in nanoseconds. */
  | { kind: 'held'; firstByteNs: string }
  /** The last message. The guard sends no signal after it, and bhyve runs or has ended. */
  | GuardEnd

export type GuardEnd =
  /** `expired`: bhyve was continued because the freeze timeout had passed. */
  | { kind: 'continued'; expired: boolean }
  /** bhyve has ended. */
  | { kind: 'gone' }
  /** bhyve could not be stopped. */
  | { kind: 'failed'; errno: number; syscall: string }

export type ToGuard =
  /** The request is sent from here on. */
  | { kind: 'sending' }
  /** End the watch, and continue bhyve if it is held. */
  | { kind: 'continue' }
  /** bhyve has closed the connection: there is nothing left to guard. */
  | { kind: 'exit' }

export function writeLine(socket: NodeJS.WritableStream, message: FromGuard | ToGuard): void {
  if (socket.writable) socket.write(`${JSON.stringify(message)}\n`)
}

/** Calls back with each message. */
export function onLines(socket: NodeJS.ReadableStream, callback: (message: unknown) => void): void {
  let rest = ''
  socket.on('data', (bytes: Buffer) => {
    const lines = (rest + bytes.toString('utf8')).split('\n')
    rest = lines.pop() ?? ''
    for (const line of lines) callback(JSON.parse(line))
  })
}
