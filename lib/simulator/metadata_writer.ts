/**
 * Writes the `.meta` file, byte for byte as libxo prints it. libxo writes a separator before the next item, not after
 * the previous one. So the file of a failed run ends in the middle of the document, and a complete document ends with a
 * newline.
 */

/**
 * The layout of the file. `'current'`: dialects `descriptor` and `reply`. `'old'`: `path`. `'oldest'`: `struct`, which
 * differs from `'old'` only in the request numbers.
 */
export type MetadataShape = 'current' | 'old' | 'oldest'

interface BasicMetadata {
  readonly cpus: number
  readonly vm: string
  readonly memoryBytes: number
  readonly memoryFlags: number
}

/** The position of a kernel structure or device in `.kern`. */
interface Section {
  readonly name: string
  readonly size: number
  readonly offset: number
}

type Field = readonly [key: string, value: string | number]

const stableNumbers = { vmx: 0, vioapic: 1, vm: 2, vlapic: 3, vhpet: 5, vmcx: 6 }

/** `enum snapshot_req` in the trees that wrote these shapes. */
const requestNumbers: Readonly<Record<'old' | 'oldest', Readonly<Record<string, number>>>> = {
  old: { ...stableNumbers, vatpic: 7, vatpit: 8, vpmtmr: 9, vrtc: 10 },
  oldest: { ...stableNumbers, vatpic: 8, vatpit: 9, vpmtmr: 10, vrtc: 11 },
}

/** Accumulates text like libxo's buffer. `text` is the content of the file if it were flushed now. */
export class MetadataWriter {
  readonly #shape: MetadataShape
  #text = ''
  #membersInside = [0]

  constructor(shape: MetadataShape) {
    this.#shape = shape
  }

  get text(): string {
    return this.#text
  }

  basic(basic: BasicMetadata): void {
    this.#open('"basic metadata": {')
    this.#fields([
      ['ncpus', basic.cpus],
      ['vmname', basic.vm],
      ['memsize', basic.memoryBytes],
      ['memflags', basic.memoryFlags],
    ])
    this.#close('}')
  }

  openStructures(): void {
    this.#open(this.#shape === 'current' ? '"kern_structs": [' : '"structs": [')
  }

  structure(section: Section): void {
    this.#section(
      this.#shape === 'current'
        ? [['device', section.name]]
        : [
            ['debug_name', section.name],
            ['snapshot_req', requestNumberOf(this.#shape, section.name)],
          ],
      section,
    )
  }

  openDevices(): void {
    this.#open('"devices": [')
  }

  device(section: Section): void {
    this.#section([[this.#shape === 'current' ? 'device' : 'snapshot_req', section.name]], section)
  }

  closeList(): void {
    this.#close(']')
  }

  finish(): void {
    this.#text += '\n}\n'
  }

  #section(names: readonly Field[], { size, offset }: Section): void {
    this.#open('{')
    this.#fields([...names, ['size', size], ['file_offset', offset]])
    this.#close('}')
  }

  #fields(fields: readonly Field[]): void {
    for (const [key, value] of fields) this.#member(`"${key}": ${valueOf(value)}`)
  }

  #open(text: string): void {
    this.#member(`${text}\n`)
    this.#membersInside.push(0)
  }

  #close(text: string): void {
    this.#membersInside.pop()
    this.#text += `\n${this.#indent}${text}`
  }

  #member(text: string): void {
    if (this.#text === '') this.#text = '{\n'
    const depth = this.#membersInside.length - 1
    const before = this.#membersInside[depth] ?? 0
    this.#membersInside[depth] = before + 1
    this.#text += `${before === 0 ? '' : ',\n'}${this.#indent}${text}`
  }

  get #indent(): string {
    return '  '.repeat(this.#membersInside.length)
  }
}

/** The number by which the old trees find a kernel structure. -1 for an unknown name. */
export function requestNumberOf(shape: 'old' | 'oldest', structure: string): number {
  return requestNumbers[shape][structure] ?? -1
}

function valueOf(value: string | number): string {
  return typeof value === 'number' ? String(value) : JSON.stringify(value)
}
