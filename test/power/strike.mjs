// Preloaded into a manager. Kills it at one call of the addon, so that recovery by another process can be recorded. It
// changes nothing else.
import childProcess from 'node:child_process'
import { syncBuiltinESMExports } from 'node:module'
import { fileURLToPath } from 'node:url'
import workerThreads from 'node:worker_threads'
import { arm } from './strike_calls.mjs'

const strike = JSON.parse(process.env.POWER_STRIKE)
const path = fileURLToPath(new URL('strike_calls.mjs', import.meta.url))
const arming = `require(${JSON.stringify(path)}).arm(${JSON.stringify(strike)});`

/** The library's threads ignore preloads. Their source is a string, to which code can be added. */
workerThreads.Worker = class extends workerThreads.Worker {
  constructor(text, options) {
    super(arming + text, options)
  }
}
const { spawn } = childProcess
childProcess.spawn = (command, args, options) => {
  const child = spawn(command, args, options)
  if (strike.after === 'spawn' && args.includes('-r')) process.kill(process.pid, 'SIGKILL')
  return child
}
syncBuiltinESMExports()
arm(strike)
