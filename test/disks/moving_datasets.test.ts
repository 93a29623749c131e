/** Datasets that a move sends and receives: what is refused, and what is destroyed. */
import { Readable } from 'node:stream'
import t, { type Test } from 'tap'
import { planReceiving, removeReceived } from '../../dist/disks/zfs/receiving.js'
import type { ZfsRecord } from '../../dist/disks/zfs/record.js'
import { planSending } from '../../dist/disks/zfs/sending.js'
import { isSentDataset } from '../../dist/disks/zfs/sent_dataset.js'
import { streamOf } from '../../dist/disks/zfs/stream_header.js'
import { rejection, scratch } from '../support/index.js'
import { StandInHost } from '../support/zfs_hosts.js'

const move = 'f0000000-0000-4000-8000-000000000001'
const owner = { vm: 'vm1', id: 'id1', directory: '/c/vm1' }
const one = { dataset: 'tank/one', bytes: 8, paths: ['/dev/zvol/tank/one'] }

function recordOf(dataset: string): ZfsRecord {
  const path = `/dev/zvol/${dataset}`
  const datasets = [{ dataset, named: false, files: [{ path, file: '' }] }]
  return { kind: 'zfs', disks: [{ path, snapshot: `${dataset}@id1` }], datasets }
}

function host(t: Test): StandInHost {
  const created = new StandInHost(scratch(t), 'host')
  created.use(t)
  return created
}

t.test('a dataset is received only where nothing is, and where it fits', async (t) => {
  const zfs = host(t)
  const none = new Set<string>()
  t.strictSame(await planReceiving([one], none), [])
  t.match(await planReceiving([{ ...one, bytes: 1_000_001 }], none), [{ code: 'no-space' }])
  const elsewhere = { ...one, mountpoint: '/vms/one' }
  t.match(await planReceiving([elsewhere], none), [
    { code: 'disks-not-receivable', message: /would be mounted at '\/tank\/one' on this host, but/ },
  ])
  t.strictSame(await planReceiving([{ ...one, mountpoint: '/tank/one' }], none), [])
  t.match(await planReceiving([{ ...one, dataset: 'tank' }], none), [
    { code: 'dataset-exists' },
    { code: 'disks-not-receivable', message: /'tank' is a pool/ },
  ])
  zfs.volume('tank/one', 'x'.repeat(1_000_000))
  zfs.set('tank', { '#available': '0' })
  t.match(await planReceiving([one], none), [{ code: 'dataset-exists' }, { code: 'no-space' }])
  zfs.set('tank/one', { 'bhyve-checkpoint:move': move })
  t.match(await planReceiving([one], none), [
    { code: 'dataset-exists', message: /which an earlier move has received/ },
    { code: 'no-space' },
  ])
  t.strictSame(await planReceiving([one], new Set([move])), [], 'it is removed before, and its space is free')
})

t.test('only what this move has received is destroyed', async (t) => {
  const zfs = host(t)
  zfs.volume('tank/one', '')
  zfs.set('tank/one@id1', { '#userrefs': '1' })
  await removeReceived(recordOf('tank/one'), { move, owner })
  t.strictSame(zfs.names, ['tank/one', 'tank/one@id1'], 'it has no property')
  zfs.set('tank/one', { 'bhyve-checkpoint:move': move.replace('1', '2') })
  await removeReceived(recordOf('tank/one'), { move: move.replace('f', 'e'), owner })
  t.strictSame(zfs.names, ['tank/one', 'tank/one@id1'], 'it is of another move')
  zfs.set('tank/one', { 'bhyve-checkpoint:move': move })
  zfs.volume(`tank/one.${move}`, '')
  await removeReceived(recordOf('tank/one'), { move, owner })
  t.strictSame(zfs.names, [])
})

t.test('datasets that are encrypted, or are pools, are not sent', async (t) => {
  const zfs = host(t)
  zfs.volume('tank/one', 'disk one')
  t.strictSame(await planSending(recordOf('tank/one')), [one])
  zfs.set('tank/one', { '#encryption': 'aes-256-gcm' })
  await t.rejects(planSending(recordOf('tank/one')), { message: /'tank\/one' is encrypted \(aes-256-gcm\)/ })
  await t.rejects(planSending(recordOf('tank')), { message: /'tank' is a pool/ })
  await t.rejects(planSending(recordOf('tank/two')), { message: /does not exist/ })
})

/** The first record of a stream, as `zfs send` writes it. */
function header(
  by: { magic?: bigint; version?: bigint; guid?: bigint; from?: bigint } = {},
  isBig = false,
): Buffer {
  const { magic = 0x2f5bacbacn, version = 1n, guid = 7n, from = 0n } = by
  const bytes = Buffer.alloc(312)
  const write = (value: bigint, at: number): number =>
    isBig ? bytes.writeBigUInt64BE(value, at) : bytes.writeBigUInt64LE(value, at)
  write(magic, 8)
  write(version, 16)
  write(guid, 40)
  write(from, 48)
  return bytes
}

async function through(bytes: Buffer): Promise<Buffer> {
  const parts: Uint8Array[] = []
  const halves = [bytes.subarray(0, 20), bytes.subarray(20)].filter(({ length }) => length > 0)
  for await (const part of streamOf('7', Readable.from(halves))) parts.push(part)
  return Buffer.concat(parts)
}

t.test('a stream is passed on only if it is the complete one of the recorded snapshot', async (t) => {
  const sound = Buffer.concat([header(), Buffer.from('data')])
  t.strictSame(await through(sound), sound)
  t.strictSame(await through(header({}, true)), header({}, true), 'of a host with the other byte order')
  const refused = async (bytes: Buffer, message: RegExp): Promise<void> =>
    void t.match(await rejection(through(bytes)), { code: 'ERR_MOVE_FAILED', message })
  await refused(header({ magic: 1n }), /not a stream of ZFS/)
  await refused(header({ version: 2n }), /more than one complete snapshot/)
  await refused(header({ from: 6n }), /more than one complete snapshot/)
  await refused(header({ guid: 8n }), /of another snapshot than the manifest records/)
  await refused(header().subarray(0, 50), /ends early/)
  await refused(Buffer.alloc(0), /ends early/)
})

t.test('names and paths of the other host are checked', (t) => {
  t.ok(isSentDataset(one))
  for (const by of [
    { dataset: '-F/one' },
    { dataset: 'tank/../one' },
    { dataset: 'tank/one@x' },
    { bytes: -1 },
    { bytes: '8' },
    { paths: ['one'] },
    { paths: ['/a\0'] },
    { mountpoint: 'legacy' },
  ])
    t.notOk(isSentDataset({ ...one, ...by }), JSON.stringify(by))
  t.end()
})
