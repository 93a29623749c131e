/** The guard processes of saves with onFrozen, and the state of a process. Linux only. */
import fs from 'node:fs'
import { isFailure, loadNative } from '../../dist/base/native.js'

export function processState(pid: number): string {
  const status = loadNative().processStatus(pid)
  return isFailure(status) ? 'gone' : status.state
}

/** The guard that this process has started. */
export function guardOf(parent: number): number | undefined {
  const found = fs.readdirSync('/proc').find((pid) => /^\d+$/.test(pid) && isGuardOf(pid, parent))
  return found === undefined ? undefined : Number(found)
}

function isGuardOf(pid: string, parent: number): boolean {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, 'utf8')
    const owner = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1])
    return owner === parent && fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('guard_process')
  } catch {
    return false
  }
}
