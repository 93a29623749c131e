// Exposes metrics for Prometheus: the number of operations by kind and outcome, and their duration.
//
//   import { metrics } from './prometheus.mjs'
//   server.get('/metrics', (_request, reply) => reply.type('text/plain; version=0.0.4').send(metrics()))
import { tracingChannel } from 'node:diagnostics_channel'

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
/** Seconds. The upper buckets are for guests whose RAM takes minutes to write. */
const bounds = [0.1, 1, 5, 15, 60, 300, 1800]
const counts = new Map()
const durations = new Map(
  operations.map((operation) => [operation, { buckets: bounds.map(() => 0), sum: 0, count: 0 }]),
)
const startedAt = new WeakMap()
const bytes = { stored: 0 }

/** The VM's name is not a label: each of thousands of VMs would create a time series that never ends. */
function ended(event) {
  const { operation, error, result } = event
  const code = error === undefined ? 'ok' : (error.code ?? 'unknown')
  const key = `operation="${operation}",code="${code}"`
  counts.set(key, (counts.get(key) ?? 0) + 1)
  if (operation === 'create' || operation === 'suspend') bytes.stored += result?.storedBytes ?? 0
  const seconds = (performance.now() - startedAt.get(event)) / 1000
  const duration = durations.get(operation)
  duration.sum += seconds
  duration.count += 1
  for (const [index, bound] of bounds.entries()) if (seconds <= bound) duration.buckets[index] += 1
}

for (const operation of operations) {
  tracingChannel(`bhyve-checkpoint:${operation}`).subscribe({
    start: (event) => startedAt.set(event, performance.now()),
    asyncEnd: ended,
    end: () => undefined,
    asyncStart: () => undefined,
    error: () => undefined,
  })
}

export function metrics() {
  const total = 'bhyve_checkpoint_operations_total'
  const seconds = 'bhyve_checkpoint_operation_seconds'
  const stored = 'bhyve_checkpoint_stored_bytes_total'
  return [
    `# HELP ${total} Operations that ended, by outcome.`,
    `# TYPE ${total} counter`,
    ...[...counts].map(([labels, count]) => `${total}{${labels}} ${count}`),
    `# HELP ${seconds} Duration of operations in seconds.`,
    `# TYPE ${seconds} histogram`,
    ...[...durations].flatMap(([operation, { buckets, sum, count }]) => [
      ...buckets.map(
        (below, index) => `${seconds}_bucket{operation="${operation}",le="${bounds[index]}"} ${below}`,
      ),
      `${seconds}_bucket{operation="${operation}",le="+Inf"} ${count}`,
      `${seconds}_sum{operation="${operation}"} ${sum}`,
      `${seconds}_count{operation="${operation}"} ${count}`,
    ]),
    `# HELP ${stored} Bytes that new checkpoints occupy on disk.`,
    `# TYPE ${stored} counter`,
    `${stored} ${bytes.stored}`,
    '',
  ].join('\n')
}
