/**
 * Whether bhyve and the kernel were built with BHYVE_SNAPSHOT. The manual pages do not show it: those of FreeBSD describe
 * checkpoints whatever was built. The usage of bhyve has the option `-r` only if bhyve was built with it
 * (usr.sbin/bhyve/bhyverun.c and amd64/bhyverun_machdep.c: `#ifdef BHYVE_SNAPSHOT`). `kern.conftxt` has the options of a
 * kernel that was built with INCLUDE_CONFIG_FILE, as GENERIC is (config(5)). 5BSD's own tests use both checks.
 */
import type { HostFacts } from './host_facts.js'

/** `unknown`: the program cannot be started, or the kernel does not report its options. */
export type Support = 'yes' | 'no' | 'unknown'

export interface SnapshotSupport {
  bhyve: Support
  kernel: Support
}

export const bhyveProgram = '/usr/sbin/bhyve'

export async function snapshotSupport(facts: HostFacts): Promise<SnapshotSupport> {
  const [usage, kernel] = await Promise.all([facts.usage(bhyveProgram, '-h'), kernelSupport(facts)])
  return { bhyve: supportFrom(usage, /^\s*-r\b/m), kernel }
}

export async function kernelSupport(facts: HostFacts): Promise<Support> {
  return supportFrom(await facts.sysctl('kern.conftxt'), /^options\s+BHYVE_SNAPSHOT\s*$/m)
}

function supportFrom(text: string | undefined, pattern: RegExp): Support {
  if (text === undefined || text.trim() === '') return 'unknown'
  return pattern.test(text) ? 'yes' : 'no'
}
