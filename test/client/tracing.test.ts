/** Tracing channels, NODE_DEBUG lines, and the two examples that use the channels. */
import { tracingChannel } from 'node:diagnostics_channel'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { type Attributes, type Span, type SpanStatus, trace, type Tracer } from '@opentelemetry/api'
import t from 'tap'
import { InFlight } from '../../dist/client/in_flight.js'
import { tracedClient } from '../../dist/client/traced_client.js'
import { createClient, type OperationEvent, operations } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { CliWorld } from '../support/cli.js'
import { scratch } from '../support/index.js'

const example = (name: string): string => fileURLToPath(new URL(`../../examples/${name}`, import.meta.url))

t.test('every call publishes its start, error and end with one event object and no secrets', async (t) => {
  const seen: [string, OperationEvent][] = []
  const note = (kind: string) => (event: unknown) => void seen.push([kind, event as OperationEvent])
  const subscribers = {
    start: note('start'),
    end: () => undefined,
    asyncStart: () => undefined,
    asyncEnd: note('asyncEnd'),
    error: note('error'),
  }
  for (const operation of operations) tracingChannel(`bhyve-checkpoint:${operation}`).subscribe(subscribers)
  t.teardown(() => {
    for (const operation of operations)
      tracingChannel(`bhyve-checkpoint:${operation}`).unsubscribe(subscribers)
  })
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 1024 * 1024 })
  t.teardown(() => bhyve.stop())
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: scratch(t) })
  const take = (): [string, OperationEvent][] => seen.splice(0)

  const { storedBytes } = await client.createCheckpoint('vm1', { name: 'a' })
  const [[first, begun], [last, ended], ...others] = take() as [
    [string, OperationEvent],
    [string, OperationEvent],
  ]
  t.same([first, last, others.length], ['start', 'asyncEnd', 0])
  t.equal(begun, ended)
  t.same(ended, {
    operation: 'create',
    vm: 'vm1',
    checkpoint: 'a',
    result: { memoryBytes: 1048576, storedBytes },
  })

  const rejected = await client.createCheckpoint('vm2').catch((error: unknown) => error)
  const failure = take()
  t.same(
    failure.map(([kind]) => kind),
    ['start', 'error', 'asyncEnd'],
  )
  t.match(failure[2], [
    'asyncEnd',
    { operation: 'create', vm: 'vm2', checkpoint: 'checkpoint', error: rejected },
  ])

  const args = ['-s', '29,fbuf,tcp=0.0.0.0:5900,password=hunter2', 'vm1']
  await client.planRestore('vm1', 'a', { args })
  await client.restore('vm1', 'a', { args }).catch(() => undefined)
  const events = take()
  t.same(
    events.map(([, { operation }]) => operation),
    ['planRestore', 'planRestore', 'restore', 'restore', 'restore'],
  )
  t.notMatch(JSON.stringify(events), 'hunter2')

  await client.verifyCheckpoint('vm1', 'a', { depth: 'content' })
  await client.listCheckpoints('vm1')
  await client.getCheckpoint('vm1', 'a')
  await client.pinCheckpoint('vm1', 'a')
  await client.labelCheckpoint('vm1', 'a', { b: 'c' })
  await client.pruneCheckpoints('vm1', { keepLast: 1 })
  await client.listStored()
  await client.suspendedCheckpoint('vm1')
  await client.pause('vm1')
  await client.resume('vm1')
  await client.listVirtualMachines()
  await client.pruneAll({ keepLast: 1 })
  const listed: string[] = []
  for await (const { name } of client.listAllCheckpoints()) listed.push(name)
  t.same(listed, ['a'])
  await client.importCheckpoint('vm1', 'b', client.exportCheckpoint('vm1', 'a'))
  await client.planCheckpoint('vm1')
  await client.diagnose()
  await client.suspend('vm1')
  await client.destroyCheckpoint('vm1', 'a')
  await client.destroyAll('vm1')
  const done = take().filter(([kind]) => kind === 'asyncEnd')
  t.same(new Set(done.map(([, { operation }]) => operation)).size, operations.length - 6)
  for (const [, event] of done) t.notOk('error' in event, event.operation)
})

t.test('a traced call rejects invalid arguments with the same codes', async (t) => {
  const client = createClient({ checkpointDirectory: scratch(t) })
  const create = (vm: unknown, options: unknown): Promise<unknown> =>
    client.createCheckpoint(vm as string, options as object)
  await t.rejects(create(undefined, null), { code: 'ERR_INVALID_VM_NAME' })
  await t.rejects(create('vm1', null), { code: 'ERR_INVALID_OPTION' })
  await t.rejects(create('vm1', { name: 1 }), { code: 'ERR_INVALID_CHECKPOINT_NAME' })
})

t.test('NODE_DEBUG logs every decision', async (t) => {
  const world = new CliWorld(t)
  await world.start({ vm: 'vm1' })
  const env = { NODE_DEBUG: 'bhyve-checkpoint' }
  const decisions = (stderr: string): string[] =>
    [...stderr.matchAll(/^BHYVE-CHECKPOINT \d+: vm1: (.*?)(?: \{.*\})?$/gm)].map((match) => match[1]!)
  const told = await world.run({ args: ['create', 'vm1'], env }, 'pipe')
  const asked = ['dialect', 'peer accepted', 'EOF']
  t.same(decisions(told.stderr), [
    ...asked,
    'bhyve wrote nothing: trying the next dialect',
    ...asked,
    'verdict',
    'published',
  ])
  t.match(told.stderr, /dialect \{"dialect":"path".*dialect \{"dialect":"descriptor"/s)
  t.match(told.stderr, /verdict \{"complete":true,"problems":\[\]\}/)
  const suspended = await world.run({ args: ['suspend', 'vm1', '--dialect', 'descriptor'], env }, 'pipe')
  t.same(decisions(suspended.stderr), [
    ...['dialect', 'peer accepted', 'supervisor', 'EOF'],
    ...['verdict', 'published'],
  ])
  t.match(suspended.stderr, /EOF \{"vmState":/)
  const silent = await world.run({ args: ['list'] }, 'pipe')
  t.equal(silent.stderr, '')
})

interface Recorded {
  name: string
  attributes: Attributes
  status?: SpanStatus
  exception?: unknown
  ended: boolean
}

/** A tracer with the methods that the example uses. */
function recordingTracer(spans: Recorded[]): Tracer {
  const startSpan = (name: string, { attributes = {} }: { attributes?: Attributes } = {}): Span => {
    const recorded: Recorded = { name, attributes: { ...attributes }, ended: false }
    spans.push(recorded)
    const span = {
      setAttributes: (more: Attributes) => void Object.assign(recorded.attributes, more),
      setStatus: (status: SpanStatus) => void (recorded.status = status),
      recordException: (exception: unknown) => void (recorded.exception = exception),
      end: () => void (recorded.ended = true),
    }
    return span as unknown as Span
  }
  return { startSpan } as unknown as Tracer
}

t.test('the examples turn the events into spans and metrics', async (t) => {
  const spans: Recorded[] = []
  trace.setGlobalTracerProvider({ getTracer: () => recordingTracer(spans) })
  await import(example('opentelemetry.mjs'))
  const { metrics } = (await import(example('prometheus.mjs'))) as { metrics: () => string }
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 1024 * 1024 })
  t.teardown(() => bhyve.stop())
  const client = createClient({
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: path.join(scratch(t), 'checkpoints'),
  })
  const { storedBytes } = await client.createCheckpoint('vm1')
  await client.createCheckpoint('vm2').catch(() => undefined)
  t.match(spans, [
    {
      name: 'bhyve-checkpoint create',
      attributes: {
        'bhyve_checkpoint.vm': 'vm1',
        'bhyve_checkpoint.checkpoint': 'checkpoint',
        'bhyve_checkpoint.result.storedBytes': storedBytes,
      },
      ended: true,
    },
    {
      attributes: { 'bhyve_checkpoint.vm': 'vm2', 'bhyve_checkpoint.error.code': 'ERR_VM_NOT_RUNNING' },
      status: { code: 2, message: 'ERR_VM_NOT_RUNNING' },
      exception: { code: 'ERR_VM_NOT_RUNNING' },
      ended: true,
    },
  ])
  const text = metrics()
  t.match(text, 'bhyve_checkpoint_operations_total{operation="create",code="ok"} 1\n')
  t.match(text, 'bhyve_checkpoint_operations_total{operation="create",code="ERR_VM_NOT_RUNNING"} 1\n')
  t.match(text, 'bhyve_checkpoint_operation_seconds_bucket{operation="create",le="+Inf"} 2\n')
  t.match(text, 'bhyve_checkpoint_operation_seconds_count{operation="create"} 2\n')
  t.match(text, `bhyve_checkpoint_stored_bytes_total ${storedBytes}\n`)
  for (const line of text.trimEnd().split('\n'))
    t.match(line, /^(# (HELP|TYPE) .*|[a-z_]+(\{[^{}]*\})? [\d.e+-]+)$/)
})

t.test('a traced call passes on all of its arguments', async (t) => {
  const passed: unknown[] = []
  const call = (...args: unknown[]): Promise<unknown> => {
    // An export also gets the function that fails its stream.
    passed.push(args.slice(0, 3))
    const all = { removed: [], blockers: [], warnings: [] }
    return Promise.resolve(Object.assign([{ removed: [] }], all))
  }
  const callGroup: unknown = new Proxy({}, { get: () => call })
  const callGroups = new Proxy({}, { get: () => callGroup }) as Parameters<typeof tracedClient>[0]
  const traced = tracedClient(callGroups, { idle: () => Promise.resolve(), inFlight: new InFlight() })
  const args = ['vm1', {}, {}]
  const others = ['idle', 'inFlight', 'listAllCheckpoints']
  for (const [name, call] of Object.entries(traced) as [string, (...args: unknown[]) => Promise<unknown>][])
    if (!others.includes(name)) await call(...args)
  t.same(
    passed,
    Array.from({ length: operations.length - 1 }, () => args),
    'all but listAll',
  )
})
