/** What the other side of a move can send: everything is bounded, has a clear error, and changes nothing here. */
import { Buffer } from 'node:buffer'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { type Duplex, duplexPair } from 'node:stream'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import t from 'tap'
import { CheckpointError } from 'bhyve-checkpoint'
import { MoveConnection } from '../../dist/operations/move/connection.js'
import { frameOf, preamble } from '../../dist/operations/move/frames.js'
import { rejection } from '../support/index.js'
import { Move } from '../support/moving.js'

setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc') as () => void
const id = randomUUID()
const silenceTimeout = 5_000

function message(value: unknown): Buffer {
  return frameOf('message', Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)))
}

const tooLong = Buffer.from([0xff, 0xff, 0xff, 0xff, 0])
const state = { type: 'state', id, state: 'arriving' }
const frames: Record<string, Buffer> = {
  'a frame of 4 GiB': tooLong,
  'data of more than 128 KiB': frameOf('data', Buffer.alloc(128 * 1024 + 1)),
  'an unknown kind of frame': Buffer.from([0, 0, 0, 0, 9]),
  'a sign of life with content': frameOf('alive', Buffer.from('x')),
  'no JSON': message('{'),
  'no UTF-8': frameOf('message', Buffer.from([0xff, 0xfe])),
  'deep JSON': message('['.repeat(500_000)),
  'deep JSON in a message': message(
    `{"type":"send","id":"${id}","x":${'['.repeat(4e5)}${']'.repeat(4e5)},"id":1}`,
  ),
  'a type of the prototype': message({ type: 'toString', id }),
  'a type __proto__': message(`{"type":"__proto__","id":"${id}"}`),
  'properties in __proto__': message(`{"__proto__":{"type":"release","id":"${id}","vm":"vm1"}}`),
  'an array': message([{ type: 'send', id }]),
  'no id': message({ type: 'send' }),
  'an id that is a path': message({ type: 'send', id: '../../x' }),
  'a name that is a path': message({ type: 'release', id, vm: '../vm1' }),
  'a name of another type': message({ type: 'release', id, vm: ['vm1'] }),
  'a plan without facts': message({
    type: 'plan',
    id,
    vm: 'vm1',
    name: 'x',
    host: 'h',
    origin: 'o',
    anyCpu: true,
  }),
  'too many copies': message({
    ...{ type: 'drop', id, vm: 'vm1', origin: 'o' },
    copies: Array.from({ length: 257 }, () => ({ id, state: 'arriving' })),
  }),
  'text for the terminal': message({ ...state, message: '\u001b]0;title\u0007' }),
}

t.test('move: hostile frames end the call of each side, and change nothing', async (t) => {
  const move = new Move(t)
  await move.suspended()
  const { a, b } = move
  for (const [what, bytes] of Object.entries(frames))
    for (const side of ['sender', 'receiver']) {
      const [near, far] = duplexPair()
      far.on('error', () => undefined)
      far.resume()
      far.write(preamble)
      far.write(bytes)
      const call =
        side === 'sender'
          ? a.client.moveVirtualMachine('vm1', { host: 'b', connect: () => near, silenceTimeout })
          : b.client.receiveVirtualMachine(near, { silenceTimeout })
      t.match(
        await rejection(call),
        { code: 'ERR_MOVE_FAILED', message: /invalid message|unknown or too long/ },
        `${what} to the ${side}`,
      )
    }
  t.strictSame([await move.restorable(), a.moveOf(), b.moveOf()], [['a'], undefined, undefined])
})

t.test('move: a sender that does not read the answers is cut off', async (t) => {
  const move = new Move(t)
  const [near, far] = duplexPair()
  far.on('error', () => undefined)
  const received = rejection(move.b.client.receiveVirtualMachine(near))
  far.write(preamble)
  let isOver = false
  void received.then(() => (isOver = true))
  const request = Buffer.concat(Array.from({ length: 100 }, () => message({ type: 'end', id })))
  let sent = 0
  while (!isOver && sent < 20 * 1024 * 1024) {
    sent += request.length
    await written(far, request)
  }
  t.ok(isOver, `after ${String(sent)} bytes`)
  t.match(await received, { code: 'ERR_MOVE_FAILED', message: /does not read/ })
})

function written(far: Duplex, bytes: Buffer): Promise<unknown> {
  if (far.destroyed || far.write(bytes)) return new Promise(setImmediate)
  return Promise.race([once(far, 'drain'), new Promise((resolve) => setTimeout(resolve, 100))])
}

t.test('connection: waiting keeps nothing, however much arrives', async (t) => {
  const [near, far] = duplexPair()
  using connection = new MoveConnection(near, 60_000)
  far.write(preamble)
  const received = async (count: number): Promise<number> => {
    for (let index = 0; index < count; index++) {
      far.write(frameOf('data', Buffer.from('x')))
      await connection.receive()
    }
    collect()
    return process.memoryUsage().heapUsed
  }
  const before = await received(5_000)
  const bytes = (await received(30_000)) - before
  t.ok(bytes < 20_000_000, `${String(bytes)} bytes`)
  far.destroy()
})

t.test('connection: a read after the end leaves no rejection unhandled', async (t) => {
  const [near, far] = duplexPair()
  using connection = new MoveConnection(near, 60_000)
  connection.interrupt(new CheckpointError('ERR_MOVE_FAILED', 'interrupted'))
  t.match(await rejection(connection.receive()), { message: 'interrupted' })
  near.destroy(new Error('broken'))
  far.destroy()
  await new Promise(setImmediate)
  t.match(await rejection(connection.receive()), { message: 'interrupted' })
})
