/** What a checkpoint's manifest records of the host: another one may not be able to restore it. */
import os from 'node:os'
import type { ManifestHost } from './inspect/manifest.js'

export function hostFacts(): ManifestHost {
  const [cpu] = os.cpus()
  return {
    os: os.type(),
    release: os.release(),
    machine: os.machine(),
    cpuModel: cpu?.model ?? 'unknown',
  }
}
