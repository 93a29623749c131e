/**
 * Finds the program that waits for a bhyve process and may start its VM again. It reads the ancestors of the process,
 * and sends nothing. Runs in the pool.
 */
import path from 'node:path'
import { CheckpointError, isExhausted, systemError } from '../../base/errors.js'
import { type Failure, isFailure, loadNative } from '../../base/native.js'
import { visible } from '../../base/visible_text.js'
import { Directory } from '../../fs/directory.js'

/**
 * `daemon`: daemon(8), whose title does not show whether it has `-r`. `script`: a shell that runs a script, such as
 * vmrun.sh. `other`: a program that this library does not know.
 */
export type SupervisorKind = 'vm-bhyve' | 'cbsd' | 'libvirt' | 'daemon' | 'script' | 'other'

export interface Supervisor {
  kind: SupervisorKind
  /** For messages: where it was found. Without the arguments of the program, which can contain passwords. */
  evidence: string
}

export interface Supervised {
  vm: string
  pid: number
  /** The directory in which libvirt records the processes of its VMs. */
  libvirtDirectory: string
}

interface Ancestor {
  pid: number
  words: readonly string[]
}

/** More levels than any chain of wrappers has. The parents can change during the walk, so it must be bounded. */
const maxLevels = 8

const shells: ReadonlySet<string> = new Set([
  ...['sh', 'ash', 'bash', 'dash', 'ksh', 'ksh93', 'mksh', 'oksh', 'zsh', 'csh', 'tcsh', 'fish'],
])
/** `-c`, also as the last of several options. The word after it is the script itself. */
const isCommandOption = /^-[A-Za-z]*c$/
/** They wait for their child, and end with it. lockf is CBSD's. */
const wrappers: ReadonlySet<string> = new Set([
  ...['doas', 'env', 'jexec', 'lockf', 'nice', 'script', 'su', 'sudo', 'time', 'timeout'],
])

/** Undefined if nobody waits for the process, or only this process or one that waits for this process. */
export function supervisorOf({ vm, pid, libvirtDirectory }: Supervised): Supervisor | undefined {
  // libvirt detaches bhyve, whose parent then is init(8).
  if (isRecordedByLibvirt(vm, pid, libvirtDirectory))
    return { kind: 'libvirt', evidence: `'${libvirtDirectory}/${vm}.pid'` }
  const [nearest] = ancestorsOf(pid).filter(({ words }) => !wrappers.has(nameOf(words)))
  if (nearest === undefined || nearest.pid === process.pid) return undefined
  const kind = kindOf(nearest.words)
  if ((kind === 'script' || kind === 'other') && waitsForUs(nearest.pid)) return undefined
  return { kind, evidence: `process ${String(nearest.pid)}, '${programOf(nearest.words)}'` }
}

function isRecordedByLibvirt(vm: string, pid: number, directory: string): boolean {
  try {
    using records = Directory.openPathIfAny(directory)
    const name = `${vm}.pid`
    if (records?.statusIfAny(name)?.kind !== 'file') return false
    return records.readText(name, 32).trim() === String(pid)
  } catch (error) {
    // Only root can read the records of the system's libvirt, and they are about VMs of root.
    if (error instanceof CheckpointError && error.code === 'ERR_PERMISSION') return false
    throw error
  }
}

/** The nearest first, without init(8), which adopts orphans and starts none of them again. */
function ancestorsOf(pid: number): Ancestor[] {
  const found: Ancestor[] = []
  let parent = parentOf(pid)
  while (parent > 1 && found.length < maxLevels) {
    found.push({ pid: parent, words: wordsOf(parent) })
    parent = parentOf(parent)
  }
  return found
}

/** 0 if the process has ended or is not visible. */
function parentOf(pid: number): number {
  const status = loadNative().processStatus(pid)
  if (!isFailure(status)) return status.parent
  assertNotExhausted(status, pid)
  return 0
}

function wordsOf(pid: number): string[] {
  const words = loadNative().processArguments(pid)
  if (!isFailure(words)) return words.toString().split('\0').slice(0, -1)
  assertNotExhausted(words, pid)
  return []
}

/** Without a descriptor, it is unknown whether there is a supervisor. */
function assertNotExhausted(failure: Failure, pid: number): void {
  if (isExhausted(failure)) throw systemError(failure, `Reading the status of process ${String(pid)}`)
}

/** A shell that has started this process as well waits for it, unless it is the interactive shell of the caller. */
function waitsForUs(pid: number): boolean {
  let ancestor = process.ppid
  for (let level = 0; level < maxLevels && ancestor > 1; level++) {
    if (ancestor === pid) return true
    ancestor = parentOf(ancestor)
  }
  return false
}

function nameOf([program = '']: readonly string[]): string {
  // The program of a login shell begins with a dash.
  return path.basename(program).replace(/^-/, '')
}

function kindOf(words: readonly string[]): SupervisorKind {
  const name = nameOf(words)
  if (name === 'daemon' || words[0]?.startsWith('daemon: ') === true) return 'daemon'
  if (name === 'libvirtd' || name === 'virtbhyved') return 'libvirt'
  if (!shells.has(name)) return 'other'
  const script = scriptOf(words)
  if (script === undefined) return 'other'
  if (path.basename(script) === 'vm' && words.includes('_run')) return 'vm-bhyve'
  return path.basename(script) === 'bhyverun.sh' ? 'cbsd' : 'script'
}

/** `-c` if the script is an argument. Undefined if the shell reads its commands from a terminal or from a pipe. */
function scriptOf(words: readonly string[]): string | undefined {
  const script = words.slice(1).find((word) => isCommandOption.test(word) || !word.startsWith('-'))
  return script?.startsWith('-') === true ? '-c' : script
}

function programOf(words: readonly string[]): string {
  const [program = 'unknown'] = words
  const script = shells.has(nameOf(words)) ? scriptOf(words) : undefined
  const text = [program, ...(script === undefined ? [] : [script])].join(' ')
  return visible(text.replace(/\p{Cc}/gu, '?')).slice(0, 200)
}
