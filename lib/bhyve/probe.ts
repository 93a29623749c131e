/**
 * Finds the process that serves a VM's socket. It does not use `ps`: it connects, reads the credentials of the peer and
 * closes the connection. This is harmless in the nvlist dialects, and done once per process (peer_memory.ts). It is
 * never done in dialect `struct`, because that bhyve would repeat its previous request (protocol.md section 2).
 */
import os from 'node:os'
import { CheckpointError, errnoName, isExhausted, systemError } from '../base/errors.js'
import { isFailure, loadNative } from '../base/native.js'
import { peerOf, type Peer } from './peer.js'
import { isKnownToKernel, type Located, type Target } from './locate.js'
import type { PeerMemory } from './peer_memory.js'

export type Probe =
  | { kind: 'peer'; peer: Peer }
  /** No process listens on the socket. */
  | { kind: 'dead' }
  /** The process cannot be determined now, or not without harm. */
  | { kind: 'silent'; why: string }

const { ECONNREFUSED, ENOENT } = os.constants.errno

/** Returns what is known from an earlier probe, without a connection. */
export function recall(located: Located, peers: PeerMemory): Probe {
  const peer = peers.peerAt(located)
  return peer === undefined
    ? { kind: 'silent', why: 'the library did not connect to the socket of the VM' }
    : { kind: 'peer', peer }
}

export function probe(located: Located, peers: PeerMemory): Probe {
  const known = recall(located, peers)
  if (known.kind === 'peer') return known
  if (located.kind === 'struct') {
    return {
      kind: 'silent',
      why: "a connection would make a bhyve of dialect 'struct' repeat its previous request",
    }
  }
  const native = loadNative()
  const descriptor = native.connectStream(located.socketPath)
  if (isFailure(descriptor)) {
    if (descriptor.errno === ECONNREFUSED || descriptor.errno === ENOENT) return { kind: 'dead' }
    if (isExhausted(descriptor)) throw systemError(descriptor, 'Connecting to a VM', located.socketPath)
    return { kind: 'silent', why: `connecting to the socket failed with ${errnoName(descriptor.errno)}` }
  }
  try {
    const peer = peerOf(descriptor)
    peers.rememberPeer(located, peer)
    return { kind: 'peer', peer }
  } finally {
    native.close(descriptor)
  }
}

/** Returns the process behind one of the VM's sockets. Throws if there is none or if it cannot be determined. */
export function findPeer(
  sockets: readonly Located[],
  target: Target,
  peers: PeerMemory,
): { peer: Peer; located: Located } {
  const { vm } = target
  const probes = sockets.map((located) => ({ located, probe: probe(located, peers) }))
  for (const { located, probe: found } of probes) {
    if (found.kind === 'peer') return { peer: found.peer, located }
  }
  for (const { located, probe: found } of probes) {
    if (found.kind !== 'silent') continue
    const message = `The process of VM '${vm}' cannot be determined: ${found.why}. Pass the pid of that process with the option 'pid'`
    throw new CheckpointError('ERR_DIALECT_UNSUPPORTED', message, {
      vm,
      path: located.socketPath,
      vmState: 'unknown',
    })
  }
  throw withoutListener(target)
}

/**
 * FreeBSD reports a full backlog as ECONNREFUSED, as if no process listened. The backlog of a paused VM fills up, so
 * such a VM may be alive.
 */
function withoutListener(target: Target): CheckpointError {
  const { vm } = target
  const isKnown = isKnownToKernel(target)
  const message = isKnown
    ? `No process accepts connections on the socket of VM '${vm}', but the VM still exists in the kernel. If the ` +
      `bhyve process of the VM is paused, pass the pid with the option 'pid'. If that process has ended, run ` +
      `bhyvectl --vm=${vm} --destroy`
    : `VM '${vm}' is not running: no process listens on the socket of the VM`
  return new CheckpointError('ERR_VM_NOT_RUNNING', message, { vm, vmState: isKnown ? 'unknown' : 'off' })
}
