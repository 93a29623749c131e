/** Serves the checkpoint socket of one VM. Like bhyve, it handles one request at a time, from accept() to close(). */
import { constants } from 'node:os'
import { isFailure } from '../base/native.js'
import { saveCheckpoint, type Guest, type Outcome } from './checkpoint.js'
import type { Listener } from './listener.js'
import type { SimulatorNative } from './native_calls.js'
import { NvType, type NvPair } from './nvlist.js'
import { encodeNvlist } from './nvlist_encoder.js'
import { errnoOf } from './simulator_options.js'
import type { Coroutine } from './reactor.js'
import { newRequestState, receiveRequest, type Received } from './receive_request.js'

/** Runs after a suspend has destroyed the VM and its listener and connection are closed. */
type OnDestroyed = () => Coroutine

/** Serves until the VM is destroyed. Then closes `listener` before it closes the connection. */
export function* serve(
  native: SimulatorNative,
  listener: Listener,
  guest: Guest,
  onDestroyed: OnDestroyed,
): Coroutine {
  const state = newRequestState()
  for (;;) {
    yield { readable: listener.descriptor }
    // A hang occurs before accept(), so that no connection leaves the backlog.
    const closeAtOnce = (yield* guest.faults.inject('accept')) !== undefined
    const socket = native.simulator.accept(listener.descriptor)
    if (isFailure(socket)) continue
    if (!closeAtOnce) {
      const outcome = yield* serveRequest(native, socket, guest, state)
      for (const descriptor of state.descriptors.splice(0)) native.close(descriptor)
      if (outcome?.destroyed === true) {
        // Connections that wait behind the suspend end without a reply.
        listener.close()
        native.close(socket)
        yield* onDestroyed()
        return
      }
    }
    native.close(socket)
  }
}

/** Returns undefined if no checkpoint was attempted. */
function* serveRequest(
  native: SimulatorNative,
  socket: number,
  guest: Guest,
  state: ReturnType<typeof newRequestState>,
): Coroutine<Outcome | undefined> {
  const { dialect, faults } = guest
  const received = yield* receiveRequest(native, socket, dialect, state, () => faults.inject('receive'))
  if (received.kind === 'no-command' && dialect === 'reply') native.simulator.dieBy(constants.signals.SIGABRT)
  const outcome =
    received.kind === 'checkpoint' ? yield* saveCheckpoint(native, guest, received.request) : undefined
  // A connection without a request has no reply, and must not use up the fault.
  if (received.kind === 'failed') return undefined
  const unanswered = (yield* faults.inject('reply')) !== undefined
  if (dialect === 'reply' && !unanswered) yield* reply(native, socket, received, outcome)
  return outcome
}

function* reply(
  native: SimulatorNative,
  socket: number,
  received: Received,
  outcome: Outcome | undefined,
): Coroutine {
  if (outcome?.destroyed === true) return
  if (received.kind === 'refused') yield* send(native, socket, replyOf(received.text))
  else if (outcome !== undefined) yield* send(native, socket, replyOf(outcome.error))
}

function replyOf(error: string | undefined): Buffer {
  const pairs: NvPair[] = error === undefined ? [] : [{ name: 'error', type: NvType.string, value: error }]
  return encodeNvlist(pairs)
}

function* send(native: SimulatorNative, socket: number, bytes: Buffer): Coroutine {
  for (let offset = 0; offset < bytes.length;) {
    const sent = native.send(socket, bytes, offset)
    if (!isFailure(sent)) offset += sent
    // bhyve does not ignore SIGPIPE: a client that closes the connection before the reply kills the VM.
    else if (sent.errno === errnoOf('EPIPE')) native.simulator.dieBy(constants.signals.SIGPIPE)
    else if (sent.errno === errnoOf('EAGAIN')) yield { until: performance.now() + 1 }
    else return
  }
}
