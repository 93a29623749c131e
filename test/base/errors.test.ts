/** Errors: whether a call may be repeated, and what is left of an error in JSON, in other threads and in its stack. */
import fs from 'node:fs'
import { createRequire } from 'node:module'
import os from 'node:os'
import { MessageChannel, receiveMessageOnPort } from 'node:worker_threads'
import t from 'tap'
import { AbortError, CheckpointError, createClient, errorCodes, type ErrorDetails } from 'bhyve-checkpoint'
import { systemError, withDetails } from '../../dist/base/errors.js'
import { fromPortable, toPortable } from '../../dist/pool/messages.js'
import { rejection, scratch } from '../support/index.js'

const { errno: errnos } = os.constants
const docs = fs.readFileSync(new URL('../../docs/errors.md', import.meta.url), 'utf8')

/** The rows of the table "Try again", by their code. */
function documented(): Map<string, string> {
  const [, section = ''] = /## Try again\n([^]*?)\n## /.exec(docs) ?? []
  return new Map([...section.matchAll(/^\| `(ERR_\w+)` +\| (.*?) +\|$/gm)].map((row) => [row[1]!, row[2]!]))
}

t.test('docs/errors.md has for each code whether it is retryable', async (t) => {
  const table = documented()
  t.ok(errorCodes.length > 20)
  t.strictSame([...table.keys()].sort(), [...errorCodes].sort())
  for (const code of errorCodes) {
    const isYes = new CheckpointError(code, '').retryable
    t.match(table.get(code), isYes ? /^yes/ : /^(no\b|if )/, `${code}: ${String(isYes)}`)
  }
  const [, listed = ''] = /`errno` is one of (.*)/.exec(table.get('ERR_SYSTEM') ?? '') ?? []
  for (const [name, errno] of Object.entries(errnos)) {
    const { code, retryable } = systemError({ errno, syscall: 'open' }, 'Trying')
    const names = Object.keys(errnos).filter((other) => errnos[other as keyof typeof errnos] === errno)
    const isListed = code === 'ERR_SYSTEM' && names.some((other) => listed.split(', ').includes(other))
    t.equal(retryable, isListed, name)
  }
})

t.test('retryable survives the pool and added details', async (t) => {
  const final = new CheckpointError('ERR_CHECKPOINT_BUSY', 'busy', { retryable: false })
  const through = fromPortable(structuredClone(toPortable(final)))
  t.match(
    [final, through, withDetails(final, { vm: 'vm1' })],
    [{ retryable: false }, { retryable: false }, { retryable: false, vm: 'vm1' }],
  )
})

t.test('toJSON: has every plain detail, of the cause its name, code and message, and no stack', async (t) => {
  const secret = { env: { TOKEN: 'secret' }, args: ['-l', 'secret'] }
  const cause = Object.assign(new RangeError('why'), { code: 'EWHY', ...secret, cause: new Error('secret') })
  const details: ErrorDetails = {
    vm: 'vm1',
    checkpoint: 'a',
    vmState: 'off',
    begun: true,
    path: '/a.ckp',
    problems: [{ code: 'unreadable', message: 'm', file: 'f' }],
    existing: { id: 'i', labels: { a: 'b' } },
  }
  const error = new CheckpointError('ERR_TIMEOUT', 'too late', { ...details, cause })
  const facts = {
    name: 'CheckpointError',
    code: 'ERR_TIMEOUT',
    message: 'too late',
    retryable: true,
    ...details,
  }
  t.strictSame(error.toJSON(), { ...facts, cause: { name: 'RangeError', code: 'EWHY', message: 'why' } })
  t.strictSame(JSON.parse(JSON.stringify(error)), error.toJSON())
  t.notMatch(JSON.stringify(error), /secret|errors\.test/)
  const odd = { get message() { throw new Error('never') } } // prettier-ignore
  for (const [thrown, expected] of [
    ['text', { name: 'string', message: 'text' }],
    [null, { name: 'object', message: 'null' }],
    [odd, { name: 'Error', message: '' }],
    [Object.create(null), { name: 'Error', message: '' }],
    [new DOMException('late', 'TimeoutError'), { name: 'TimeoutError', message: 'late' }],
  ] as const)
    t.strictSame(new CheckpointError('ERR_SYSTEM', '', { cause: thrown }).toJSON().cause, expected)
  t.notOk('cause' in new CheckpointError('ERR_SYSTEM', '').toJSON())
})

t.test('an AbortError is not retryable, and has plain data too', async (t) => {
  const error = new AbortError('stopped', new Error('enough'), true, true)
  t.strictSame(error.toJSON(), {
    name: 'AbortError',
    code: 'ABORT_ERR',
    message: 'stopped',
    begun: true,
    retryable: false,
    rollingBack: true,
    cause: { name: 'Error', message: 'enough' },
  })
})

t.test('a structured clone of an error loses its code, and one of toJSON() does not', async (t) => {
  const client = createClient({ checkpointDirectory: scratch(t) })
  const error = await rejection(client.getCheckpoint('vm1', 'none'))
  const clone = structuredClone(error) as Partial<CheckpointError>
  t.match([clone.message, clone.stack, clone.code], [error.message, error.stack, undefined])
  const { port1, port2 } = new MessageChannel()
  port1.postMessage(error.toJSON())
  const { message } = receiveMessageOnPort(port2) as { message: unknown }
  port1.close()
  t.strictSame(message, error.toJSON())
  t.match(message, { code: 'ERR_CHECKPOINT_NOT_FOUND', vm: 'vm1', checkpoint: 'none', retryable: false })
})

t.test('require returns the same classes', async (t) => {
  const required = createRequire(import.meta.url)('bhyve-checkpoint') as typeof import('bhyve-checkpoint')
  const error = await required
    .createClient({ checkpointDirectory: scratch(t) })
    .getCheckpoint('vm1', 'none')
    .catch((reason: unknown) => reason)
  t.ok(error instanceof CheckpointError)
  t.ok(error instanceof required.CheckpointError)
})

t.test('the stack of an error has the frames of the caller', async (t) => {
  const root = scratch(t)
  const client = createClient({ runDirectory: root, checkpointDirectory: root })
  const programsOwn = async (call: () => Promise<unknown>): Promise<unknown> => {
    await Promise.resolve()
    return call()
  }
  const signal = AbortSignal.abort()
  const calls: Record<string, () => Promise<unknown>> = {
    'in a thread': () => client.getCheckpoint('vm1', 'none'),
    'after a wait': () => client.createCheckpoint('vm1'),
    'of an option': () => client.createCheckpoint('vm1', { timeout: -1 }),
    'of an abort': () => client.createCheckpoint('vm1', { signal }),
  }
  for (const [what, call] of Object.entries(calls)) {
    const error = (await programsOwn(call).catch((reason: unknown) => reason)) as Error
    const lines = error.stack?.split('\n') ?? []
    t.match(lines[0], error.message, what)
    const own = lines.filter((line) => line.includes('programsOwn'))
    t.equal(own.length, 1, `${what}: the frame is there once`)
    t.ok(
      lines.some((line) => line.includes('errors.test.ts')),
      what,
    )
    t.notMatch(Object.keys(error), ['stack'])
  }
})

t.test('a program that formats stacks in its own way gets the error unchanged', async (t) => {
  const client = createClient({ checkpointDirectory: scratch(t) })
  const before = Object.getOwnPropertyDescriptor(Error, 'prepareStackTrace')
  Error.prepareStackTrace = (_error, sites) => sites
  const error = await rejection(client.getCheckpoint('vm1', 'none')).finally(() => {
    Reflect.deleteProperty(Error, 'prepareStackTrace')
    if (before !== undefined) Object.defineProperty(Error, 'prepareStackTrace', before)
  })
  t.match(error, { code: 'ERR_CHECKPOINT_NOT_FOUND' })
})
