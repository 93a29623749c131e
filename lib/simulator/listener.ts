/** The socket of a simulated VM: its place, and the claim to it. */
import { lstatSync, mkdirSync, unlinkSync, utimesSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { isFailure } from '../base/native.js'
import type { SimulatorNative } from './native_calls.js'
import { errnoOf, type ServerSettings } from './simulator_options.js'
import { structSize } from './receive_request.js'

/** bhyve's own. */
const backlog = 10

/** Where a VM's socket lies. */
export function socketPathOf({ runDirectory, dialect }: SocketTarget, vm: string): string {
  return dialect === 'struct' ? join(runDirectory, 'checkpoint', vm) : join(runDirectory, vm)
}

type SocketTarget = Pick<ServerSettings, 'runDirectory' | 'dialect'>

export interface Listener {
  readonly descriptor: number
  /** Nobody listens from then on; the socket's file stays, as a dead VM's does. */
  close(): void
}

/** Throws, in words, where the socket's place is taken or cannot be used. */
export function listenFor(native: SimulatorNative, address: SocketTarget, vm: string): Listener {
  const path = socketPathOf(address, vm)
  if (Buffer.byteLength(path) > native.socketPathCapacity) {
    throw new Error(`${path} is too long for a socket: at most ${String(native.socketPathCapacity)} bytes`)
  }
  mkdirSync(dirname(path), { recursive: true, mode: 0o755 })
  removeStale(native, address, path)
  const descriptor = native.simulator.listenStream(path, backlog)
  if (isFailure(descriptor)) {
    throw new Error(
      `cannot listen on ${path}: ${descriptor.syscall} failed with errno ${String(descriptor.errno)}`,
    )
  }
  const close = (): void => {
    native.close(descriptor)
    renew(path)
  }
  return { descriptor, close }
}

/**
 * Changes the file's time of change. A process of several VMs outlives one of them, and whoever has remembered by the
 * file which process serves it must ask again.
 */
function renew(path: string): void {
  try {
    const now = new Date()
    utimesSync(path, now, now)
  } catch {
    // Somebody has removed it: then nobody remembers it either.
  }
}

// A dead VM leaves its socket behind, and bhyve unlinks it without looking. Here a live one is spared.
function removeStale(native: SimulatorNative, address: SocketTarget, path: string): void {
  const status = lstatSync(path, { throwIfNoEntry: false })
  if (status === undefined) return
  if (!status.isSocket()) throw new Error(`${path} exists and is no socket`)
  const connection = native.connectStream(path)
  if (!isFailure(connection)) {
    // Leaving a `struct` VM without a word would execute its previous request once more.
    if (address.dialect === 'struct') native.send(connection, Buffer.alloc(structSize, 0xff), 0)
    native.close(connection)
  } else if (connection.errno === errnoOf('ECONNREFUSED')) {
    unlinkSync(path)
    return
  }
  throw new Error(`${path} belongs to a VM that is running`)
}
