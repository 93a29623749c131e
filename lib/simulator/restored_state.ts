/** Restores kernel structures and devices from a checkpoint, or throws the Refusal with which bhyve would not start. */
import { exitStatus, Refusal } from './refusal.js'
import type { MetadataShape } from './metadata_writer.js'
import type { SavedCheckpoint } from './saved_checkpoint.js'
import { devicesOf, freshState, structuresOf, type GuestState, type StateSection } from './sections.js'

interface Configured {
  readonly vm: string
  readonly cpus: number
  readonly devices: readonly string[]
}

/** Restores the devices first because upstream reports their errors first. */
export function restoredState(
  checkpoint: SavedCheckpoint,
  shape: MetadataShape,
  configured: Configured,
): GuestState {
  const devices =
    shape === 'current'
      ? configured.devices.map((name) => restoredDevice(checkpoint, name))
      : restoredTypes(checkpoint, configured)
  const structures = structuresOf(shape, configured.cpus).map(({ name }) => {
    return restoredStructure(checkpoint, shape, name)
  })
  return { structures, devices }
}

function restoredDevice(checkpoint: SavedCheckpoint, name: string): StateSection {
  const bytes = checkpoint.device(name)
  if (bytes === undefined) {
    throw new Refusal(exitStatus.cannotRestore, `Failed to restore PCI device state: no ${name}`)
  }
  if (bytes.length === 0) {
    throw new Refusal(exitStatus.cannotRestore, `Failed to restore PCI device state: size is 0: ${name}`)
  }
  return saved(name, bytes)
}

// The old trees search the checkpoint for each device type that they support. A device that was not saved starts with
// fresh state.
function restoredTypes(checkpoint: SavedCheckpoint, { vm, cpus, devices }: Configured): StateSection[] {
  const fresh = freshState({ vm, shape: 'old', cpus, devices }).devices
  const present = new Map(devicesOf('old', devices).map(({ name, size }) => [name, size > 0]))
  return fresh.map((section) => {
    const bytes = checkpoint.device(section.name)
    const usable = bytes !== undefined && bytes.length > 0 && present.get(section.name) === true
    return usable ? saved(section.name, bytes) : section
  })
}

function restoredStructure(checkpoint: SavedCheckpoint, shape: MetadataShape, name: string): StateSection {
  const bytes = checkpoint.structure(name)
  if (bytes !== undefined && bytes.length > 0) return saved(name, bytes)
  const status = shape === 'current' ? exitStatus.invalidData : exitStatus.cannotRestore
  throw new Refusal(
    status,
    bytes === undefined ? `Cannot find kern struct ${name}` : `data with zero size for ${name}`,
  )
}

function saved(name: string, bytes: Buffer): StateSection {
  return { name, size: bytes.length, read: () => bytes }
}
