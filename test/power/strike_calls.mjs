// Kills the process at a call of the addon: `{ before | after: call, to?: suffix of the call's last argument, since?: calls
// that the threads must have made before, in this order }`. `call:suffix` in `since` also requires a last argument.
import fs from 'node:fs'
import { loadNative } from '../../dist/base/native.js'

export function arm({ before, after, to = '', since = [], flag }) {
  const native = loadNative()
  const wrap = (call, prepare, conclude) => {
    const original = native[call]
    native[call] = (...args) => {
      prepare(args)
      const result = original.apply(native, args)
      conclude(args)
      return result
    }
  }
  const kill = (args) => {
    if (!String(args.at(-1)).endsWith(to) || countIn(flag) < since.length) return
    process.kill(process.pid, 'SIGKILL')
    for (;;); // wait for the signal
  }
  const nothing = () => undefined
  for (const [index, entry] of since.entries()) {
    const [call, suffix = ''] = entry.split(':')
    const count = (args) => {
      if (countIn(flag) === index && String(args.at(-1)).endsWith(suffix)) fs.appendFileSync(flag, '.')
    }
    wrap(call, count, nothing)
  }
  if (before !== undefined) wrap(before, kill, nothing)
  if (after !== undefined && after !== 'spawn') wrap(after, nothing, kill)
}

/** How many of the calls in `since` were made. The threads share the file. */
function countIn(flag) {
  return fs.statSync(flag, { throwIfNoEntry: false })?.size ?? 0
}
