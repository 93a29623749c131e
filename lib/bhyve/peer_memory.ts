/**
 * Who was found behind a socket, and which dialect that process speaks. A question costs a connection, and a bhyve
 * that is busy or stopped takes none from its backlog: asked again and again, it would shut everybody out
 * (protocol.md section 2). So it is asked once, until the socket's file or the process behind it is another one.
 */
import type { Dialect } from '../base/types.js'
import type { Located } from './locate.js'
import { knownStateOf, type Peer } from './peer.js'

interface Remembered {
  /** Of the socket's file: a bhyve that starts makes a new one. */
  identity: string
  peer: Peer
  dialect?: Dialect
}

export class PeerMemory {
  readonly #remembered = new Map<string, Remembered>()

  /** The process behind this very socket file, dead or alive. */
  peerAt(located: Located): Peer | undefined {
    return this.#at(located)?.peer
  }

  /** The dialect it was found to speak, while it lives. */
  dialectAt(located: Located): Dialect | undefined {
    const known = this.#at(located)
    return known !== undefined && knownStateOf(known.peer) === 'running' ? known.dialect : undefined
  }

  rememberPeer(located: Located, peer: Peer): void {
    const dialect = this.#isSame(located, peer) ? this.#at(located)?.dialect : undefined
    this.#remembered.set(located.socketPath, {
      identity: located.identity,
      peer,
      ...(dialect === undefined ? {} : { dialect }),
    })
  }

  rememberDialect(located: Located, peer: Peer, dialect: Dialect): void {
    this.#remembered.set(located.socketPath, { identity: located.identity, peer, dialect })
  }

  #at({ socketPath, identity }: Located): Remembered | undefined {
    const known = this.#remembered.get(socketPath)
    return known?.identity === identity ? known : undefined
  }

  #isSame(located: Located, { pid, startedAt }: Peer): boolean {
    const known = this.#at(located)?.peer
    return known?.pid === pid && known.startedAt === startedAt
  }
}

/**
 * One for all clients of this environment. It holds what is true of the system, checked at every use, and nothing
 * of a client's own: clients made for a single call would otherwise ask a stopped VM anew each time.
 */
export const sharedPeers = new PeerMemory()
