// A worker that watches a process. On request it reports for how many milliseconds the process was stopped (SIGSTOP)
// since the last report. It needs /proc.
import fs from 'node:fs'
import { parentPort, workerData } from 'node:worker_threads'

const { pid, control } = workerData
const pauseMs = 0.5
let stoppedMs = 0

/** Sleeps between two looks, so that the watch does not occupy a processor. */
const nap = new Int32Array(new SharedArrayBuffer(4))

for (let last = performance.now(); Atomics.load(control, 0) === 0;) {
  Atomics.wait(nap, 0, 0, pauseMs)
  const now = performance.now()
  if (isStopped()) stoppedMs += now - last
  last = now
  if (Atomics.compareExchange(control, 1, 1, 0) === 1) {
    parentPort.postMessage(stoppedMs)
    stoppedMs = 0
  }
}

function isStopped() {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, 'latin1')
    return stat.slice(stat.lastIndexOf(')') + 2).startsWith('T')
  } catch {
    return false
  }
}
