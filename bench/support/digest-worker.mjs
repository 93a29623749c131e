// One thread of the scan, without the pool.
import fs from 'node:fs'
import { parentPort, workerData } from 'node:worker_threads'
import { scanRange } from '../../dist/checkpoint/slice.js'
import { OpenFile } from '../../dist/fs/open_file.js'

const { file, from, to } = workerData
const chunkBytes = 256 * 1024
const opened = OpenFile.own(fs.openSync(file, 'r'), file)
const stop = new Int32Array(new SharedArrayBuffer(4))
parentPort.postMessage('ready')
parentPort.once('message', () => {
  scanRange(opened, { from, to, chunkBytes, stop }, { digest: true, holeBlockBytes: 0 })
  parentPort.postMessage('done')
})
