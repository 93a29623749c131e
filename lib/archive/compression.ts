/** Compresses and decompresses archives. zstd needs Node 22.15 or newer. */
import { Buffer } from 'node:buffer'
import { pipeline, Readable, type Duplex } from 'node:stream'
import zlib from 'node:zlib'
import { CheckpointError } from '../base/errors.js'
import { archiveInvalid } from './archive_fault.js'

export type Compression = 'none' | 'gzip' | 'zstd'

/** A low level: RAM is large, and the guest's owner waits. */
const gzipLevel = 1
const chunkSize = 256 * 1024
const gzipStart = Buffer.from([0x1f, 0x8b])
const zstdStart = Buffer.from([0x28, 0xb5, 0x2f, 0xfd])

/** Absent in older releases of Node, contrary to the types. */
type MaybeZstd = Partial<Record<'createZstdCompress' | 'createZstdDecompress', (options: object) => Duplex>>

/** Throws ERR_INVALID_OPTION if this Node cannot compress so. */
export function compressor(compression: Compression): Duplex | undefined {
  if (compression === 'none') return undefined
  if (compression === 'gzip') return zlib.createGzip({ level: gzipLevel, chunkSize })
  const { createZstdCompress } = zlib as MaybeZstd
  if (createZstdCompress !== undefined) return createZstdCompress({ chunkSize })
  const message =
    "The option 'compress' can be 'zstd' only with Node 22.15 or newer. Pipe the stream through zstd instead"
  throw new CheckpointError('ERR_INVALID_OPTION', message)
}

/** The bytes of an archive that may be compressed, which its first bytes show. */
export async function* decompressed(source: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const chunks = source[Symbol.asyncIterator]()
  try {
    let start = Buffer.alloc(0)
    let isDone = false
    while (start.length < zstdStart.length && !isDone) {
      const next = await chunks.next()
      isDone = next.done === true
      if (next.done !== true) start = Buffer.concat([start, next.value])
    }
    const rest = restOf(start, chunks)
    const decompress = decompressorFor(start)
    if (decompress === undefined) yield* rest
    else yield* through(rest, decompress)
  } finally {
    await chunks.return?.()
  }
}

async function* restOf(start: Buffer, chunks: AsyncIterator<Uint8Array>): AsyncGenerator<Uint8Array> {
  if (start.length > 0) yield start
  for (;;) {
    const next = await chunks.next()
    if (next.done === true) return
    yield next.value
  }
}

function decompressorFor(start: Buffer): Duplex | undefined {
  if (start.subarray(0, gzipStart.length).equals(gzipStart)) return zlib.createGunzip({ chunkSize })
  if (!start.subarray(0, zstdStart.length).equals(zstdStart)) return undefined
  const { createZstdDecompress } = zlib as MaybeZstd
  if (createZstdDecompress !== undefined) return createZstdDecompress({ chunkSize })
  throw archiveInvalid('it is compressed with zstd, which needs Node 22.15 or newer: pipe it through zstd -d')
}

async function* through(source: AsyncIterable<Uint8Array>, transform: Duplex): AsyncGenerator<Uint8Array> {
  const output = pipeline(Readable.from(source, { objectMode: false }), transform, () => undefined)
  try {
    yield* output as AsyncIterable<Uint8Array>
  } catch (cause) {
    if (isOfZlib(cause)) throw archiveInvalid(`it cannot be decompressed: ${cause.message}`, { cause })
    throw cause
  }
}

function isOfZlib(error: unknown): error is Error {
  return error instanceof Error && 'code' in error && /^(?:Z_|ZSTD_)/.test(String(error.code))
}
