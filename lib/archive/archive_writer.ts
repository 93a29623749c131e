/** The parts of an archive besides the data: what stands before, between and after the files. */
import { Buffer } from 'node:buffer'
import { blockBytes, type DataMap } from './data_map.js'
import { mapText, mapTextBytes, paddingOf } from './sparse_format.js'
import { encodeHeaders } from './tar_header.js'

/** What every tar writes by default. */
const recordBytes = 20 * blockBytes

interface FileToWrite {
  file: string
  size: number
  modifiedNs: bigint
  map: DataMap
}

/** The headers of a file and, if it has holes, its map. */
export function* beforeData({ file: name, size, modifiedNs, map }: FileToWrite): Generator<Buffer> {
  if (map.isFull) {
    yield encodeHeaders({ name, storedBytes: size, modifiedNs, realSize: undefined })
    return
  }
  const storedBytes = mapTextBytes(map, size) + map.bytes
  yield encodeHeaders({ name, storedBytes, modifiedNs, realSize: size })
  yield* mapText(map, size)
}

export function afterData({ map }: FileToWrite): Buffer {
  return Buffer.alloc(paddingOf(map.bytes))
}

/** Two blocks of zeros, and the rest of the last record. `written`: the bytes before. */
export function endOfArchive(written: number): Buffer {
  const end = 2 * blockBytes
  return Buffer.alloc(end + ((recordBytes - ((written + end) % recordBytes)) % recordBytes))
}
