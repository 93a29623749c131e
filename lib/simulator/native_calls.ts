/**
 * The calls of the addon that only the simulator uses. The addon exports them as one object, `simulator`. Only this
 * file declares that object, so production code cannot call it.
 */
import { type Failure, loadNative, type Native, type NvPair } from '../base/native.js'

export interface SimulatorNative extends Native {
  readonly simulator: SimulatorCalls
}

interface SimulatorCalls {
  // The server side of a socket (native/simulator/server_socket.*).
  /** Returns a bound, listening, non-blocking stream socket. The file must not exist. */
  listenStream(path: string, backlog: number): number | Failure
  /** Returns a bound datagram socket. */
  bindDatagram(path: string): number | Failure
  accept(listener: number): number | Failure
  /** Calls recv(), which discards control data sent with the bytes, as in bhyve. An empty buffer means end of file. */
  receive(socket: number, length: number): Buffer | Failure
  /** Calls recvmsg() for one byte and up to `expected` descriptors, like libnv's fd_recv. */
  receiveDescriptors(
    socket: number,
    expected: number,
  ): { bytes: number; descriptors: number[]; truncated: boolean } | Failure
  /**
   * Waits until one of `descriptors` is readable or closed by its peer. A timeout of -1 waits without limit. Blocks the
   * thread.
   */
  poll(descriptors: readonly number[], timeoutMs: number): number[] | Failure

  /** Encodes any list that `decodeNvlist` accepts. The tests compare the result with the simulator's own encoder. */
  encodeNvlist(pairs: readonly NvPair[]): Buffer

  // The end of this process (native/simulator/fatal_signal.*).
  /** Ends this process by the default action of `signal`, even if a handler is set. */
  dieBy(signal: number): never
}

export function loadSimulatorNative(): SimulatorNative {
  return loadNative() as SimulatorNative
}
