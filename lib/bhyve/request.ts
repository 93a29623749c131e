/**
 * One request to bhyve: connect, know the peer, send everything at once, then hold the connection to its end
 * (protocol.md section 2). JavaScript waits on the socket; no thread is held.
 */
import net from 'node:net'
import os from 'node:os'
import type { Cancellation } from '../base/cancellation.js'
import { systemError } from '../base/errors.js'
import { type Failure, isFailure, loadNative } from '../base/native.js'
import type { Dialect } from '../base/types.js'
import { connect, type RetryPolicy } from './connect.js'
import type { Located, Target } from './locate.js'
import { assertNotPaused, assertSame, assertTrusted, type Peer, peerOf } from './peer.js'
import type { PeerMemory } from './peer_memory.js'
import { ReplyBuffer } from './reply.js'

interface Request {
  dialect: Dialect
  operation: 'checkpoint' | 'suspend'
  /** The whole path in `struct` and `path`, the file's name in `descriptor`. */
  filename: string
  /** The folder that `descriptor` passes. */
  directory: number
}

export interface Sent {
  peer: Peer
  /** Resolves at EOF, however it comes; never rejects. */
  ended: Promise<{ replyError: string | undefined }>
}

const { EAGAIN, EPIPE, ECONNRESET, ENOTCONN } = os.constants.errno

/** A peer that closed before it had read everything: its EOF tells the same. */
const goneErrors = new Set<number>([EPIPE, ECONNRESET, ENOTCONN])
const retryMs = 5

/** Where a request goes, and what is known of the other end. */
interface Recipient {
  located: Located
  target: Target
  peers: PeerMemory
  retryPolicy: RetryPolicy
  /** It must be this process, where one was asked before. */
  expected?: Peer | undefined
  /** Done once the peer is known to be welcome, before the first byte; what it throws is thrown. */
  beforeSending?: (peer: Peer) => Promise<void>
}

export async function sendRequest(
  request: Request,
  recipient: Recipient,
  cancellation: Cancellation,
): Promise<Sent> {
  const native = loadNative()
  const { located, target, peers, retryPolicy } = recipient
  const payload = native.encodeRequest(request.dialect, request.operation, request.filename)
  const descriptor = await connect(located, target, peers, cancellation, retryPolicy)
  try {
    const peer = await acceptPeer(descriptor, request.dialect, recipient)
    await sendAll(descriptor, payload, request)
    return { peer, ended: hold(descriptor) }
  } catch (error) {
    native.close(descriptor)
    throw error
  }
}

async function acceptPeer(descriptor: number, dialect: Dialect, recipient: Recipient): Promise<Peer> {
  const { located, target, peers, expected, beforeSending } = recipient
  try {
    const peer = peerOf(descriptor)
    peers.rememberPeer(located, peer)
    assertTrusted(peer, located, target)
    assertNotPaused(peer, target)
    if (expected !== undefined) assertSame(peer, expected, target)
    await beforeSending?.(peer)
    return peer
  } catch (error) {
    if (dialect === 'struct') await sendRefused(descriptor)
    throw error
  }
}

/** A `struct` bhyve that is left without a request would repeat the one before it. */
async function sendRefused(descriptor: number): Promise<void> {
  await sendBytes(descriptor, loadNative().encodeRequest('struct', 'refused', ''))
}

async function sendAll(descriptor: number, payload: Uint8Array, request: Request): Promise<void> {
  const native = loadNative()
  const sent = await sendBytes(descriptor, payload)
  if (sent && request.dialect === 'descriptor') {
    await untilAccepted(() => native.sendDescriptor(descriptor, request.directory))
  }
  const result = native.shutdownWrite(descriptor)
  if (isFailure(result) && !goneErrors.has(result.errno)) throw systemError(result, 'ending the request')
}

/** False where the peer has gone. */
async function sendBytes(descriptor: number, bytes: Uint8Array): Promise<boolean> {
  let offset = 0
  while (offset < bytes.length) {
    const sent = await untilAccepted(() => loadNative().send(descriptor, bytes, offset))
    if (sent === undefined) return false
    offset += sent
  }
  return true
}

/** Undefined where the peer has gone. A request fits any sane socket buffer: waiting is for insane ones. */
async function untilAccepted(send: () => number | Failure): Promise<number | undefined> {
  for (;;) {
    const result = send()
    if (!isFailure(result)) return result
    if (goneErrors.has(result.errno)) return undefined
    if (result.errno !== EAGAIN) throw systemError(result, 'sending the request')
    await new Promise((resolve) => setTimeout(resolve, retryMs))
  }
}

/** Of this environment: libuv owns them, and nobody else counts them. */
let heldConnections = 0

/** How many connections to a bhyve are held. */
export function connectionsHeld(): number {
  return heldConnections
}

/** Gives the connection to libuv, which owns it from then on, and waits for its end. */
function hold(descriptor: number): Sent['ended'] {
  const socket = new net.Socket({ fd: descriptor, readable: true, writable: false })
  loadNative().disown(descriptor)
  heldConnections++
  const reply = new ReplyBuffer()
  return new Promise((resolve) => {
    socket.on('data', (chunk: Uint8Array) => reply.add(chunk))
    // ECONNRESET at the end means the same as EOF.
    socket.on('error', () => undefined)
    socket.on('close', () => {
      heldConnections--
      resolve({ replyError: reply.errorText })
    })
  })
}
