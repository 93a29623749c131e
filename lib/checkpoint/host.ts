/** What is known of the host. A checkpoint's manifest records it: another one may not be able to restore it. */
import os from 'node:os'
import type { ManifestHost } from './manifest.js'

export interface Host extends ManifestHost {
  /** Without what caches would give back. */
  freeMemoryBytes: number
}

export function hostNow(): Host {
  return { ...hostFacts(), freeMemoryBytes: os.freemem() }
}

let facts: ManifestHost | undefined

/** Asked once: none of it changes while a process runs, and the question about processors takes a moment. */
export function hostFacts(): ManifestHost {
  facts ??= {
    os: os.type(),
    release: os.release(),
    machine: os.machine(),
    cpuModel: os.cpus()[0]?.model ?? 'unknown',
  }
  return facts
}
