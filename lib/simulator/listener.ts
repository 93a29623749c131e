/** The socket of a simulated VM: its path, and how it is created and closed. */
import { lstatSync, mkdirSync, unlinkSync, utimesSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { isFailure } from '../base/native.js'
import type { SimulatorNative } from './native_calls.js'
import type { VmSettings } from './settings.js'
import { errnoOf } from './simulator_options.js'
import { structSize } from './receive_request.js'

/** The same as bhyve's. */
const backlog = 10

/** The path of a VM's socket. */
export function socketPathOf({ runDirectory, dialect }: SocketTarget, vm: string): string {
  return dialect === 'struct' ? join(runDirectory, 'checkpoint', vm) : join(runDirectory, vm)
}

type SocketTarget = Pick<VmSettings, 'runDirectory' | 'dialect'>

export interface Listener {
  readonly descriptor: number
  /** Closes the socket. The socket file stays, because bhyve does not unlink it either. */
  close(): void
}

/** Throws an Error if the path is in use or not usable. */
export function listenFor(native: SimulatorNative, address: SocketTarget, vm: string): Listener {
  const path = socketPathOf(address, vm)
  if (Buffer.byteLength(path) > native.socketPathCapacity) {
    throw new Error(
      `socket path '${path}' is too long: the maximum is ${String(native.socketPathCapacity)} bytes`,
    )
  }
  mkdirSync(dirname(path), { recursive: true, mode: 0o755 })
  removeStale(native, address, path)
  const descriptor = native.simulator.listenStream(path, backlog)
  if (isFailure(descriptor)) {
    throw new Error(
      `cannot listen on '${path}': ${descriptor.syscall} failed with errno ${String(descriptor.errno)}`,
    )
  }
  const close = (): void => {
    native.close(descriptor)
    touch(path)
  }
  return { descriptor, close }
}

/**
 * Updates the times of the socket file. A fleet's process outlives a VM that was suspended. A client that cached the
 * pid for this socket file must notice the change and connect again.
 */
function touch(path: string): void {
  try {
    const now = new Date()
    utimesSync(path, now, now)
  } catch {
    // The file was removed, so no cached pid applies to it.
  }
}

// A dead VM leaves its socket file. bhyve unlinks it without a check. This function keeps the socket of a running VM.
function removeStale(native: SimulatorNative, address: SocketTarget, path: string): void {
  const status = lstatSync(path, { throwIfNoEntry: false })
  if (status === undefined) return
  if (!status.isSocket()) throw new Error(`'${path}' exists but is not a socket`)
  const connection = native.connectStream(path)
  if (!isFailure(connection)) {
    // A `struct` VM repeats its previous request if a connection closes without a request. Send an invalid one.
    if (address.dialect === 'struct') native.send(connection, Buffer.alloc(structSize, 0xff), 0)
    native.close(connection)
  } else if (connection.errno === errnoOf('ECONNREFUSED')) {
    unlinkSync(path)
    return
  }
  throw new Error(`socket '${path}' belongs to a VM that is running`)
}
