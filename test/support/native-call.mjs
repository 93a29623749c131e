// Makes a call of the addon in a separate process, for tests that trace it, run it in another namespace, or expect that
// it might never return. Arguments: the call, and a directory. Prints the result as JSON.
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { isFailure, loadNative } from '../../dist/base/native.js'

const native = loadNative()
const [which, directory] = process.argv.slice(2)
const descriptor = native.openPath(directory, fs.constants.O_RDONLY)
const mark = (name) => native.openAt(descriptor, `marker-${name}`, fs.constants.O_RDONLY, 0)

const calls = {
  /** The calls that open a file and return no descriptor. */
  opening: () => {
    const { startedAt } = native.processStatus(process.pid)
    mark('begin')
    const outcomes = [
      native.readDirectory(descriptor, 0),
      native.readStartAt(descriptor, 'file', new Uint8Array(8)),
      native.processStatus(process.pid),
      native.processArguments(process.pid),
      native.signalProcess(process.pid, startedAt, 0),
      native.bootIdentity(),
    ]
    mark('end')
    return outcomes.filter(isFailure)
  },
  start: () => native.readStartAt(descriptor, 'file', new Uint8Array(8)),
  list: () => {
    const names = native.readDirectory(descriptor, 0)
    return isFailure(names) ? names : names.toString().split('\0').length - 1
  },
  /** Replaces /proc/1/stat by each of the lines and reads the status. The mount ends with the namespace. */
  statuses: () => {
    execFileSync('mount', ['--bind', directory, '/proc/1'])
    const lines = JSON.parse(fs.readFileSync(path.join(directory, 'lines'), 'utf8'))
    return lines.map((line) => {
      fs.writeFileSync(path.join(directory, 'stat'), line)
      return native.processStatus(1)
    })
  },
}

console.log(JSON.stringify(calls[which]()))
