/**
 * What only the simulator needs of the addon. It hangs there under a name of its own that nothing else declares, so
 * that production code cannot call it.
 */
import { type Failure, loadNative, type Native, type NvPair } from '../base/native.js'

export interface SimulatorNative extends Native {
  readonly simulator: SimulatorCalls
}

interface SimulatorCalls {
  // the server's end of a socket (native/simulator/server_socket.*)
  /** Bound, listening, non-blocking. The file must not exist. */
  listenStream(path: string, backlog: number): number | Failure
  /** A bound datagram socket. */
  bindDatagram(path: string): number | Failure
  accept(listener: number): number | Failure
  /** Plain recv(): control data that came along is lost, as with bhyve's. Empty: end of file. */
  receive(socket: number, length: number): Buffer | Failure
  /** recvmsg() of one byte with room for `expected` descriptors, as libnv's fd_recv. */
  receiveDescriptors(
    socket: number,
    expected: number,
  ): { bytes: number; descriptors: number[]; truncated: boolean } | Failure
  /** Waits until one of `descriptors` is readable (or hung up). -1 waits for ever. Blocks the thread. */
  poll(descriptors: readonly number[], timeoutMs: number): number[] | Failure

  /** Any list that `decodeNvlist` takes. For the tests: the simulator has an encoder of its own to compare with it. */
  encodeNvlist(pairs: readonly NvPair[]): Buffer

  // the end of this process (native/simulator/fatal_signal.*)
  /** Ends this process by `signal` with its default action, whatever handlers are set. */
  dieBy(signal: number): never
}

export function loadSimulatorNative(): SimulatorNative {
  return loadNative() as SimulatorNative
}
