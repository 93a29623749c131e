/**
 * Sends one request to bhyve: connects, checks the peer, sends all bytes at once and holds the connection until bhyve
 * closes it (protocol.md section 2). The event loop waits for the socket, so no thread is blocked.
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
  /** The full path in dialects `struct` and `path`, the file name in `descriptor`. */
  filename: string
  /** The directory that a `descriptor` request passes. */
  directory: number
}

export interface Sent {
  peer: Peer
  /** Resolves when the connection has ended, with or without an error. Never rejects. */
  ended: Promise<{ replyError: string | undefined }>
}

const { EAGAIN, EPIPE, ECONNRESET, ENOTCONN } = os.constants.errno

/**
 * The peer has closed the connection before it read everything. These are not errors of the request, because the end of
 * the connection shows the same.
 */
const peerGoneErrors = new Set<number>([EPIPE, ECONNRESET, ENOTCONN])
const retryMs = 5

/** The destination of a request, and what is known about the process there. */
interface Recipient {
  located: Located
  target: Target
  peers: PeerMemory
  retryPolicy: RetryPolicy
  /** The process that received the first request. A second request must go to the same process. */
  expected?: Peer | undefined
  /** Called when the peer was accepted, before the first byte is sent. Errors are passed on to the caller. */
  beforeSending?: (peer: Peer, connection: number) => Promise<void>
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
    await beforeSending?.(peer, descriptor)
    return peer
  } catch (error) {
    if (dialect === 'struct') await sendRefused(descriptor)
    throw error
  }
}

/** A `struct` bhyve that gets no request on a connection would repeat its previous request. */
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
  if (isFailure(result) && !peerGoneErrors.has(result.errno)) throw systemError(result, 'Ending the request')
}

/** Returns false if the peer has closed the connection. */
async function sendBytes(descriptor: number, bytes: Uint8Array): Promise<boolean> {
  let offset = 0
  while (offset < bytes.length) {
    const sent = await untilAccepted(() => loadNative().send(descriptor, bytes, offset))
    if (sent === undefined) return false
    offset += sent
  }
  return true
}

/** Returns undefined if the peer has closed the connection. EAGAIN only occurs if a socket buffer is very small. */
async function untilAccepted(send: () => number | Failure): Promise<number | undefined> {
  for (;;) {
    const result = send()
    if (!isFailure(result)) return result
    if (peerGoneErrors.has(result.errno)) return undefined
    if (result.errno !== EAGAIN) throw systemError(result, 'Sending the request')
    await new Promise((resolve) => setTimeout(resolve, retryMs))
  }
}

/** Connections held in this thread. libuv owns their descriptors, so the addon does not count them. */
let heldConnections = 0

/** Returns how many connections to bhyve processes are held. */
export function connectionsHeld(): number {
  return heldConnections
}

/** Passes the ownership of the connection to libuv and waits for its end. */
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
