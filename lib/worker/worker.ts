/**
 * A worker of the pool. It runs one job at a time, synchronously. When the worker ends, the descriptors that it still
 * owns are closed.
 */
import { parentPort } from 'node:worker_threads'
import { toCheckpointError } from '../base/errors.js'
import { loadNative } from '../base/native.js'
import { beginHolding, takeHeld } from '../store/staging/deferred_close.js'
import { beginDeferring, takeRemovals } from '../store/staging/removed.js'
import { takeNotedSnapshots } from '../store/staging/snapshot_records.js'
import { jobs, type JobName } from './jobs.js'
import { type FromWorker, type JobCall, type Outcome, toPortable, type ToWorker } from '../pool/messages.js'
import { keepReserve } from '../pool/reserve.js'

function run(job: string, args: readonly unknown[]): Outcome {
  try {
    const call = jobs[job as JobName] as (...args: readonly unknown[]) => unknown
    const value = call(...args)
    return { value, ...leftovers() }
  } catch (error) {
    return { error: toPortable(toCheckpointError(error, job)), ...leftovers() }
  }
}

function leftovers(): Pick<Outcome, 'held' | 'later' | 'snapshots'> {
  const later = takeRemovals().map((removal): JobCall => ({
    name: 'emptyRemoved' satisfies JobName,
    kind: 'disk',
    args: [removal],
  }))
  return { held: takeHeld(), later, snapshots: takeNotedSnapshots() }
}

parentPort?.on('message', (message: ToWorker) => {
  for (const descriptor of message.close) loadNative().close(descriptor)
  if (message.run !== undefined) post(run(message.run.job, message.run.args))
})

keepReserve(loadNative())
beginHolding()
beginDeferring()
post('up')

function post(message: FromWorker): void {
  parentPort?.postMessage(message)
}
