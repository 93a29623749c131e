// Creates an OpenTelemetry span for every operation of the library. Import this file once, after your tracer setup.
//
//   node --import ./telemetry-setup.mjs --import ./opentelemetry.mjs server.mjs
import { tracingChannel } from 'node:diagnostics_channel'
import { context, SpanStatusCode, trace } from '@opentelemetry/api'

const operations = [
  'create',
  'suspend',
  'restore',
  'verify',
  'destroy',
  'destroyAll',
  'prune',
  'pruneAll',
  'pause',
  'resume',
]
const tracer = trace.getTracer('bhyve-checkpoint')
/** All events of one call carry the same object. */
const spans = new WeakMap()

function attributesOf(facts, prefix = '') {
  const known = Object.entries(facts).filter(([, value]) =>
    ['string', 'number', 'boolean'].includes(typeof value),
  )
  return Object.fromEntries(known.map(([key, value]) => [`bhyve_checkpoint.${prefix}${key}`, value]))
}

function begin(event) {
  const { operation, vm, checkpoint } = event
  const attributes = attributesOf({ vm, checkpoint })
  // The caller's active span becomes the parent.
  spans.set(event, tracer.startSpan(`bhyve-checkpoint ${operation}`, { attributes }, context.active()))
}

function fail(event) {
  const span = spans.get(event)
  const { error } = event
  span?.recordException(error)
  span?.setAttributes(attributesOf({ code: error?.code, vmState: error?.vmState }, 'error.'))
  span?.setStatus({ code: SpanStatusCode.ERROR, message: error?.code })
}

function end(event) {
  const span = spans.get(event)
  if (event.result !== undefined) span?.setAttributes(attributesOf(event.result, 'result.'))
  span?.end()
}

for (const operation of operations) {
  tracingChannel(`bhyve-checkpoint:${operation}`).subscribe({
    start: begin,
    error: fail,
    asyncEnd: end,
    end: () => undefined,
    asyncStart: () => undefined,
  })
}
