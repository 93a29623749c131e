/**
 * The beginning of a ZFS stream (`dmu_replay_record` in sys/zfs_ioctl.h). The sender is not trusted: a stream can also
 * contain properties, such as a mountpoint, children, and other snapshots. Those are refused before `zfs` reads them.
 */
import { Buffer } from 'node:buffer'
import { CheckpointError } from '../../base/errors.js'

const magic = 0x2f5bacbacn
const beginRecord = 0
/** The lowest two bits of the version. A stream with properties or children has another type. */
const headerTypeMask = 3n
const ofOneSnapshot = 1n
const offsets = { type: 0, magic: 8, version: 16, guid: 40, fromGuid: 48 } as const
const headerBytes = 56

/** Yields the stream. Throws, before it yields anything, unless it is the complete stream of the snapshot with this guid. */
export async function* streamOf(
  guid: string,
  stream: AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array, void> {
  let first: Buffer | undefined = Buffer.alloc(0)
  for await (const bytes of stream) {
    if (first === undefined) {
      yield bytes
      continue
    }
    first = Buffer.concat([first, bytes])
    if (first.length < headerBytes) continue
    assertHeader(first, guid)
    yield first
    first = undefined
  }
  if (first !== undefined) throw refused('The stream of a dataset is empty or ends early')
}

/** Every host writes in its own byte order. */
function assertHeader(header: Buffer, guid: string): void {
  const isLittle = header.readBigUInt64LE(offsets.magic) === magic
  const number = (at: number): bigint => (isLittle ? header.readBigUInt64LE(at) : header.readBigUInt64BE(at))
  const type = isLittle ? header.readUInt32LE(offsets.type) : header.readUInt32BE(offsets.type)
  if (number(offsets.magic) !== magic || type !== beginRecord)
    throw refused('What arrived is not a stream of ZFS')
  if ((number(offsets.version) & headerTypeMask) !== ofOneSnapshot || number(offsets.fromGuid) !== 0n)
    throw refused('The stream of a dataset contains more than one complete snapshot')
  if (number(offsets.guid) !== BigInt(guid))
    throw refused('The stream of a dataset is of another snapshot than the manifest records')
}

function refused(message: string): CheckpointError {
  return new CheckpointError('ERR_MOVE_FAILED', message)
}
