// Runs jobs of image files in this thread, and kills this process right before its Nth change of the file system. Calls
// that only read are not counted: a kill before one of them leaves the same files as a kill before the next change.
// argv: N, and JSON: the jobs, each with its arguments. Prints `done` if there are fewer changes.
import fs from 'node:fs'
import * as jobs from '../../dist/disks/files/jobs.js'
import { loadNative } from '../../dist/base/native.js'

const [at, list] = process.argv.slice(2)
const native = loadNative()
let left = Number(at)

function wrap(target, name, changes = () => true) {
  const original = target[name]
  target[name] = (...args) => {
    if (changes(args) && --left === 0) {
      process.kill(process.pid, 'SIGKILL')
      for (;;); // wait for the signal
    }
    return original.apply(target, args)
  }
}

wrap(native, 'openAt', ([, , flags]) => (flags & fs.constants.O_CREAT) !== 0)
for (const name of ['makeDirectoryAt', 'renameAt', 'unlinkAt', 'removeDirectoryAt', 'cloneFile', 'sync'])
  wrap(native, name)
for (const name of ['writeSync', 'ftruncateSync', 'fdatasyncSync', 'fchownSync', 'fchmodSync']) wrap(fs, name)
for (const { job, args, stops } of JSON.parse(list)) jobs[job](...args, ...(stops ? [new Int32Array(1)] : []))
fs.writeFileSync(1, 'done')
