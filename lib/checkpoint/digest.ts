/**
 * Digests of guest RAM. Each chunk has a SHA-256 digest. The root is the digest of the list of chunk digests. Threads
 * can digest chunks in parallel, and a wrong chunk digest locates the damage. A chunk digest is the ordinary SHA-256
 * of that part of the file, so any tool can check it (docs/storage.md). Node computes digests with OpenSSL, which
 * uses the processor's SHA instructions.
 */
import { Buffer } from 'node:buffer'
import { createHash, type Hash } from 'node:crypto'

/** Bytes per read. A piece fits the cache of one processor core while it is searched for zeros and digested. */
export const pieceBytes = 256 * 1024
export const digestBytes = 32

const minChunkBytes = pieceBytes
const maxChunkBytes = 64 * 1024 * 1024
/** Limits the list to 8 MiB of digests, which are 11 MiB in the manifest, for any guest up to 16 TiB. */
const enoughChunks = 2 ** 18

/**
 * The chunk size of a file, a power of two. Small chunks locate zeros and damage precisely: chunks have 256 KiB up to
 * 64 GiB of RAM. Larger guests get larger chunks, which keep the list short: 4 MiB for 1 TiB.
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

/** Each thread has one buffer. Jobs of a thread run one after another, and no job uses the buffer after it returns. */
export const pieceBuffer = Buffer.allocUnsafeSlow(pieceBytes)

const zeros = Buffer.alloc(pieceBytes)
/** Cached for full chunks only, because those have few different sizes. */
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

/** Computes the digest of one chunk, piece by piece. The digest of a full chunk of zeros is cached. */
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
