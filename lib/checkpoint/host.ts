/**
 * Facts about the host. The manifest records them, because a different host may be unable to restore the checkpoint.
 */
import os from 'node:os'
import type { ManifestHost } from './manifest.js'

export interface Host extends ManifestHost {
  /** Does not count memory that caches could release. */
  freeMemoryBytes: number
}

export function hostNow(): Host {
  return { ...hostFacts(), freeMemoryBytes: os.freemem() }
}

let facts: Omit<ManifestHost, 'name'> | undefined

/** All but the name are read once: they do not change while a process runs, and listing the processors is slow. */
export function hostFacts(): ManifestHost {
  facts ??= {
    os: os.type(),
    release: os.release(),
    machine: os.machine(),
    cpuModel: os.cpus()[0]?.model ?? 'unknown',
  }
  return { name: os.hostname(), ...facts }
}
