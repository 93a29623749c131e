/**
 * Which process serves a VM's socket? By the socket's peer, not by `ps`: connect, read the credentials, close.
 * Harmless in the nvlist dialects, and done once per process (peer_memory.ts); never done in `struct`, whose bhyve
 * would repeat its previous request (protocol.md section 2).
 */
import os from 'node:os'
import { CheckpointError, errnoName, isExhausted, systemError } from '../base/errors.js'
import { isFailure, loadNative } from '../base/native.js'
import { peerOf, type Peer } from './peer.js'
import { isKnownToKernel, type Located, type Target } from './locate.js'
import type { PeerMemory } from './peer_memory.js'

export type Probe =
  | { kind: 'peer'; peer: Peer }
  /** Nobody listens. */
  | { kind: 'dead' }
  /** It cannot be asked now, or not without harm. */
  | { kind: 'silent'; why: string }

const { ECONNREFUSED, ENOENT } = os.constants.errno

/** What is known already: nobody is asked. */
export function recall(located: Located, peers: PeerMemory): Probe {
  const peer = peers.peerAt(located)
  return peer === undefined ? { kind: 'silent', why: 'it was not asked' } : { kind: 'peer', peer }
}

export function probe(located: Located, peers: PeerMemory): Probe {
  const known = recall(located, peers)
  if (known.kind === 'peer') return known
  if (located.kind === 'struct') {
    return {
      kind: 'silent',
      why: "a bhyve of dialect 'struct' would repeat its previous request if it were asked",
    }
  }
  const native = loadNative()
  const descriptor = native.connectStream(located.socketPath)
  if (isFailure(descriptor)) {
    if (descriptor.errno === ECONNREFUSED || descriptor.errno === ENOENT) return { kind: 'dead' }
    if (isExhausted(descriptor)) throw systemError(descriptor, 'connecting to a VM', located.socketPath)
    return { kind: 'silent', why: `its socket answers ${errnoName(descriptor.errno)}` }
  }
  try {
    const peer = peerOf(descriptor)
    peers.rememberPeer(located, peer)
    return { kind: 'peer', peer }
  } finally {
    native.close(descriptor)
  }
}

/** The process behind one of the VM's sockets; rejects where there is none, or none that can be asked. */
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
    const message = `the process of VM '${vm}' cannot be found out: ${found.why}. Name it by the option 'pid'`
    throw new CheckpointError('ERR_DIALECT_UNSUPPORTED', message, {
      vm,
      path: located.socketPath,
      vmState: 'unknown',
    })
  }
  throw nobodyListens(target)
}

/** FreeBSD refuses a connection to a full backlog as if nobody listened, and that of a VM that stands still fills up. */
function nobodyListens(target: Target): CheckpointError {
  const { vm } = target
  const isKnown = isKnownToKernel(target)
  const message = isKnown
    ? `nobody takes a connection at the socket of VM '${vm}', but the kernel still has it: either its process stands ` +
      `still (name it by the option 'pid'), or it is dead (bhyvectl --vm=${vm} --destroy)`
    : `VM '${vm}' is not running: nobody listens at its socket`
  return new CheckpointError('ERR_VM_NOT_RUNNING', message, { vm, vmState: isKnown ? 'unknown' : 'off' })
}
