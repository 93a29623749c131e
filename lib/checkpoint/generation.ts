/**
 * bhyve's checkpoint format has three generations. bhyve restores only checkpoints of its own generation (protocol.md
 * section 6). The first two differ in the numbers of their kernel structures (`enum snapshot_req` in
 * sys/amd64/include/vmm_snapshot.h), which changed between the releases.
 */

/** `'13.1'`: FreeBSD 13.1 and later 13.x. `'14'`: FreeBSD 14 and later. */
export type Generation = '13.0' | '13.1' | '14'

const common = { vmx: 0, vioapic: 1, vm: 2, vlapic: 3, vhpet: 5, vmcx: 6 }

const structureNumbers: readonly { generation: Generation; numbers: Readonly<Record<string, number>> }[] = [
  { generation: '13.0', numbers: { ...common, vatpic: 8, vatpit: 9, vpmtmr: 10, vrtc: 11 } },
  { generation: '13.1', numbers: { ...common, vatpic: 7, vatpit: 8, vpmtmr: 9, vrtc: 10 } },
]

const systems: Readonly<Record<Generation, string>> = {
  '13.0': 'FreeBSD 13.0',
  '13.1': 'FreeBSD 13.1 or a later 13.x',
  '14': 'FreeBSD 14 or later',
}

/** The generation that uses these structure numbers. Undefined if no known generation does. */
export function generationOfNumbers(numberOf: ReadonlyMap<string, number>): Generation | undefined {
  const found = structureNumbers.find(({ numbers }) =>
    Object.entries(numbers).every(([name, number]) => numberOf.get(name) === number),
  )
  return found?.generation
}

/** The releases of this generation, for messages. */
export function systemOf(generation: Generation): string {
  return systems[generation]
}
