// Every operation of the library as an OpenTelemetry span: import this file once, beside whatever sets your tracer up.
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
  'pause',
  'resume',
]
const tracer = trace.getTracer('bhyve-checkpoint')
/** The event is the same object from the start of a call to its end. */
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
  // The span that the caller is in becomes the parent.
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
