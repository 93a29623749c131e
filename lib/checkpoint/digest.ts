/**
 * Digests of guest RAM: SHA-256 of every chunk, and one of the list of these, the root. Chunks can be digested side
 * by side, and tell where a file is damaged. Each is the plain SHA-256 of that part of the file: any tool can check
 * it (docs/storage.md). They are Node's, that is OpenSSL's, which uses the processor's own instructions for it.
 */
import { Buffer } from 'node:buffer'
import { createHash, type Hash } from 'node:crypto'

/** What is read at once: it stays in a processor core's own cache while it is looked through and digested. */
export const pieceBytes = 256 * 1024
export const digestBytes = 32

const minChunkBytes = pieceBytes
const maxChunkBytes = 64 * 1024 * 1024
/** As many as a list should have: 8 MiB of digests, 11 MiB in the manifest, whatever the guest's size. */
const enoughChunks = 2 ** 18

/**
 * A power of two, the same for all of a file. Small, so that zeros and damage are told finely (256 KiB up to 64 GiB
 * of RAM), and with the guest as large as it takes to keep the list short (4 MiB for 1 TiB).
 */
export function chunkBytesFor(memoryBytes: number): number {
  let chunkBytes = minChunkBytes
  while (chunkBytes < maxChunkBytes && memoryBytes / chunkBytes > enoughChunks) chunkBytes *= 2
  return chunkBytes
}

export function isChunkBytes(value: number): boolean {
  return value >= minChunkBytes && value <= maxChunkBytes && Number.isInteger(Math.log2(value))
}

export function chunkCount(memoryBytes: number, chunkBytes: number): number {
  return Math.ceil(memoryBytes / chunkBytes)
}

/** One for each thread: its jobs run one after the other, and each is done with it when it returns. */
export const pieceBuffer = Buffer.allocUnsafeSlow(pieceBytes)

const zeros = Buffer.alloc(pieceBytes)
/** Of whole chunks, of which there are few sizes. */
const zeroDigests = new Map<number, Buffer>()

function zeroDigest(length: number): Buffer {
  const known = zeroDigests.get(length)
  if (known !== undefined) return known
  const hash = createHash('sha256')
  addZeros(hash, length)
  const digest = hash.digest()
  if (isChunkBytes(length)) zeroDigests.set(length, digest)
  return digest
}

function addZeros(hash: Hash, length: number): void {
  for (let left = length; left > 0; left -= pieceBytes)
    hash.update(zeros.subarray(0, Math.min(left, pieceBytes)))
}

/** The digest of one chunk, piece by piece. Zeros are hashed only where something follows or precedes them. */
export class ChunkDigest {
  #hash: Hash | undefined
  #zeroBytes = 0

  addZeros(length: number): void {
    if (this.#hash === undefined) this.#zeroBytes += length
    else addZeros(this.#hash, length)
  }

  add(bytes: Buffer): void {
    if (this.#hash === undefined) {
      this.#hash = createHash('sha256')
      addZeros(this.#hash, this.#zeroBytes)
    }
    this.#hash.update(bytes)
  }

  digest(): Buffer {
    return this.#hash?.digest() ?? zeroDigest(this.#zeroBytes)
  }
}
