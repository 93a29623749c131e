/**
 * Which emulations bhyve can save. Since FreeBSD 14, bhyve saves every PCI device and fails at the first one whose
 * emulation has no `pe_snapshot` (`pci_snapshot()` in usr.sbin/bhyve/pci_emul.c returns ENOTSUP). FreeBSD 13 saves the
 * first device of each type in its list `snapshot_devs` (usr.sbin/bhyve/snapshot.c) and ignores all others.
 *
 * The names are those of `struct pci_devemu` in usr.sbin/bhyve/pci_*.c, read in November 2026. That `hostbridge` can be
 * saved, although pci_hostbridge.c shows no `pe_snapshot`, is known from checkpoints (test/fixtures/golden/meta).
 */
import type { Dialect } from '../base/types.js'

const saved = [
  'ahci',
  'dummy',
  'e1000',
  'fbuf',
  'hostbridge',
  'lpc',
  'virtio-blk',
  'virtio-net',
  'virtio-rnd',
  'xhci',
] as const

const unsaved = [
  'hda',
  'nvme',
  'passthru',
  'uart',
  'virtio-9p',
  'virtio-console',
  'virtio-input',
  'virtio-scsi',
] as const

/** FreeBSD 13 does not save these. They have no state that a guest would miss. */
const stateless = ['hostbridge', 'dummy']

export const emulations = { saved, unsaved } as const

export interface DeviceSupport {
  /** bhyve fails when it comes to them. */
  unsupported: string[]
  /** bhyve leaves them out and does not report that. */
  leftOut: string[]
  /** Emulations that this library does not know. */
  unknown: string[]
}

/** `devices`: `<emulation>@<address>`, as in a checkpoint. */
export function supportOf(devices: readonly string[], dialect: Dialect): DeviceSupport {
  const named = devices.map((device) => ({ device, emulation: device.slice(0, device.indexOf('@')) }))
  const having = (list: readonly string[]): string[] =>
    named.filter(({ emulation }) => list.includes(emulation)).map(({ device }) => device)
  const unknown = named
    .filter(({ emulation }) => ![...saved, ...unsaved].includes(emulation as (typeof saved)[number]))
    .map(({ device }) => device)
  if (dialect === 'descriptor') return { unsupported: having(unsaved), leftOut: [], unknown }
  const second = named.filter(
    ({ emulation }, index) =>
      named.findIndex((one) => one.emulation === emulation) < index && !stateless.includes(emulation),
  )
  const leftOut = [...having(unsaved), ...second.map(({ device }) => device)]
  return { unsupported: [], leftOut: [...new Set(leftOut)], unknown }
}
