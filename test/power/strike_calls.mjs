// Kills the process at a call of the addon: `{ before | after: call, to?: suffix of the call's last argument, since?: a
// call that some thread must have made before }`.
import fs from 'node:fs'
import { loadNative } from '../../dist/base/native.js'

export function arm({ before, after, to = '', since, flag }) {
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
    if (!String(args.at(-1)).endsWith(to) || (since !== undefined && !fs.existsSync(flag))) return
    process.kill(process.pid, 'SIGKILL')
    for (;;); // wait for the signal
  }
  const nothing = () => undefined
  if (since !== undefined) wrap(since, () => fs.writeFileSync(flag, ''), nothing)
  if (before !== undefined) wrap(before, kill, nothing)
  if (after !== undefined && after !== 'spawn') wrap(after, nothing, kill)
}
