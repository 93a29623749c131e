/** What is known of the host. A checkpoint's manifest records it: another one may not be able to restore it. */
import os from 'node:os'
import type { ManifestHost } from './inspect/manifest.js'

export interface Host extends ManifestHost {
  /** Without what caches would give back. */
  freeMemoryBytes: number
}

export function hostNow(): Host {
  return { ...hostFacts(), freeMemoryBytes: os.freemem() }
}

export function hostFacts(): ManifestHost {
  const [cpu] = os.cpus()
  return {
    os: os.type(),
    release: os.release(),
    machine: os.machine(),
    cpuModel: cpu?.model ?? 'unknown',
  }
}
