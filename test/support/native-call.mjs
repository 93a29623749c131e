// Calls of the addon that a test wants in a process of its own: traced, in other namespaces, or because they might never
// end. Arguments: which, and a folder. Prints what came of it as JSON.
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { isFailure, loadNative } from '../../dist/base/native.js'

const native = loadNative()
const [which, directory] = process.argv.slice(2)
const folder = native.openPath(directory, fs.constants.O_RDONLY)
const mark = (name) => native.openAt(folder, `marker-${name}`, fs.constants.O_RDONLY, 0)

const calls = {
  /** Those that open something and hand nothing out. */
  opening: () => {
    const { startedAt } = native.processStatus(process.pid)
    mark('begin')
    const outcomes = [
      native.readDirectory(folder, 0),
      native.readStartAt(folder, 'file', new Uint8Array(8)),
      native.processStatus(process.pid),
      native.signalProcess(process.pid, startedAt, 0),
      native.bootIdentity(),
    ]
    mark('end')
    return outcomes.filter(isFailure)
  },
  start: () => native.readStartAt(folder, 'file', new Uint8Array(8)),
  list: () => {
    const names = native.readDirectory(folder, 0)
    return isFailure(names) ? names : names.toString().split('\0').length - 1
  },
  /** What is made of each of these lines, in the place of what the system says of process 1. Ends with its namespace. */
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
