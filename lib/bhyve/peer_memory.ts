/**
 * Remembers which process serves a socket, and its dialect. Finding out requires a connection. A bhyve that is busy or
 * stopped accepts no connections, so repeated attempts would fill its backlog and shut out all clients (protocol.md
 * section 2). Therefore the library connects once, and again only if the socket's file or the process has changed.
 */
import type { Dialect } from '../base/types.js'
import type { Located } from './locate.js'
import { knownStateOf, type Peer } from './peer.js'

interface Remembered {
  /** Identifies the file of the socket. Each bhyve creates a new file when it starts. */
  identity: string
  peer: Peer
  dialect?: Dialect
}

export class PeerMemory {
  readonly #remembered = new Map<string, Remembered>()

  /** Returns the process that was found behind this socket file. It may have ended since. */
  peerAt(located: Located): Peer | undefined {
    return this.#at(located)?.peer
  }

  /** Returns the dialect of the process, if it is known and the process is running. */
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
 * One memory for all clients of this thread. It contains facts about the system that are checked at each use, and
 * no state of a client. Otherwise clients that are created for a single call would connect to a stopped VM each time.
 */
export const sharedPeers = new PeerMemory()
