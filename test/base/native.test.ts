/**
 * Guarantees of the addon that no call of the library shows: it does not leak descriptors to child processes, follow
 * links, block on FIFOs or return partial results.
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { type Failure, isFailure, type ProcessStatus } from '../../dist/base/native.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import { childEnvironment, scratch, until } from '../support/index.js'
import { needs } from '../support/programs.js'

const native = loadSimulatorNative()
const { errno } = os.constants
const script = fileURLToPath(new URL('../support/native-call.mjs', import.meta.url))
const isLinux = process.platform === 'linux'
const needsLinux = { skip: !isLinux && 'needs Linux' }
// The leak detector of ASan traces the process, which is not possible while strace traces it.
const untraced = { ASAN_OPTIONS: `${process.env.ASAN_OPTIONS ?? ''}:detect_leaks=0` }

function opened(result: number | Failure): number {
  if (isFailure(result)) throw new Error(`${result.syscall}: ${String(result.errno)}`)
  return result
}

/**
 * Runs a call in a process of its own, optionally started by another program. A process that does not end is killed.
 */
function callOf(which: string, directory: string, ...starter: string[]): unknown {
  const [program, ...words] = [...starter, process.execPath, script, which, directory]
  const options = { encoding: 'utf8', env: childEnvironment(untraced), timeout: 20_000 } as const
  return JSON.parse(execFileSync(program, words, { ...options, stdio: ['ignore', 'pipe', 'inherit'] }))
}

/** Reads the flags of the descriptor from the kernel. */
function isInherited(descriptor: number): boolean {
  const closeOnExec = 0o2000000
  const [, flags] = /^flags:\s+(\d+)$/m.exec(fs.readFileSync(`/proc/self/fdinfo/${descriptor}`, 'utf8'))!
  return (Number.parseInt(flags!, 8) & closeOnExec) === 0
}

t.test('descriptors that the calls return are not inherited', needsLinux, async (t) => {
  const directory = scratch(t)
  const before = native.ownedDescriptors()
  const { O_DIRECTORY, O_WRONLY, O_CREAT } = fs.constants
  const parent = opened(native.openPath(directory, O_DIRECTORY))
  const listener = opened(native.simulator.listenStream(path.join(directory, 'stream'), 1))
  const client = opened(native.connectStream(path.join(directory, 'stream')))
  const server = opened(native.simulator.accept(listener))
  opened(native.sendDescriptor(client, parent))
  const received = native.simulator.receiveDescriptors(server, 1)
  if (isFailure(received)) return t.fail('recvmsg')
  const status = native.processStatus(process.pid)
  if (isFailure(status)) return t.fail('this process lives')
  const all: Record<string, number> = {
    openPath: parent,
    openAt: opened(native.openAt(parent, 'file', O_WRONLY | O_CREAT, 0o600)),
    listenStream: listener,
    connectStream: client,
    accept: server,
    receiveDescriptors: received.descriptors[0]!,
    bindDatagram: opened(native.simulator.bindDatagram(path.join(directory, 'datagram'))),
    watchProcess: opened(native.watchProcess(process.pid, status.startedAt)),
    adopt: opened(native.adopt(parent)),
  }
  t.equal(native.ownedDescriptors() - before, Object.keys(all).length)
  for (const [call, descriptor] of Object.entries(all)) {
    t.equal(isInherited(descriptor), false, call)
    native.close(descriptor)
  }
})

t.test('descriptors that the calls open internally are not inherited', needs('strace'), async (t) => {
  const directory = scratch(t)
  fs.writeFileSync(path.join(directory, 'file'), 'text')
  const log = path.join(scratch(t), 'trace')
  const failed = callOf('opening', directory, 'strace', '-f', '-qq', '-e', 'trace=open,openat', '-o', log)
  t.strictSame(failed, [])
  const [, traced = ''] = /marker-begin".*\n([^]*)\n.*marker-end"/.exec(fs.readFileSync(log, 'utf8'))!
  const lines = traced.split('\n')
  const paths = ['"."', '"file"', '/stat"', '/cmdline"', '/stat"', '/boot_id"']
  t.equal(lines.length, paths.length, traced)
  for (const [index, text] of paths.entries()) t.ok(lines[index]!.includes(text), text)
  t.strictSame(
    lines.filter((line) => !line.includes('O_CLOEXEC')),
    [],
  )
})

t.test('readStartAt does not follow symbolic links', async (t) => {
  const directory = scratch(t)
  fs.writeFileSync(path.join(directory, 'file'), 'secret')
  fs.symlinkSync('file', path.join(directory, 'link'))
  const parent = opened(native.openPath(directory, fs.constants.O_DIRECTORY))
  const bytes = Buffer.alloc(3)
  t.equal(native.readStartAt(parent, 'file', bytes), 3)
  t.equal(bytes.toString(), 'sec')
  const followed = native.readStartAt(parent, 'link', bytes)
  t.ok(isFailure(followed) && [errno.ELOOP, errno.EMLINK].includes(followed.errno), JSON.stringify(followed))
  t.match(native.readStartAt(parent, '.', bytes), { errno: errno.EISDIR }, 'and does not read directories')
  native.close(parent)
})

t.test('readStartAt does not wait for a FIFO', async (t) => {
  const directory = scratch(t)
  execFileSync('mkfifo', [path.join(directory, 'file')])
  t.equal(callOf('start', directory), 0)
})

t.test('readDirectory returns all names, or fails', needs('strace'), async (t) => {
  const directory = fs.realpathSync(scratch(t))
  const count = 1000
  // Enough names for several getdents64() calls.
  for (let index = 0; index < count; index++)
    fs.writeFileSync(path.join(directory, `${'n'.repeat(200)}${index}`), '')
  t.equal(callOf('list', directory), count)
  const inject = 'inject=getdents64:error=EIO:when=2+'
  const starter = ['strace', '-f', '-qq', '-P', directory, '-e', inject, '-o', '/dev/null']
  t.strictSame(callOf('list', directory, ...starter), { errno: errno.EIO, syscall: 'readdir' })
})

t.test('lock reports an invalid descriptor as an error, not as a held lock', async (t) => {
  const closed = opened(native.openPath(scratch(t), fs.constants.O_DIRECTORY))
  native.close(closed)
  for (const descriptor of [-1, closed])
    t.match(native.lock(descriptor, 'exclusive'), { errno: errno.EBADF, syscall: 'flock' })
})

/** Returns a line of /proc/<pid>/stat of a child of process 77, started at 4242. */
function statLine(command: string, letter: string, flags: number): string {
  const zeros = (count: number): number[] => Array.from({ length: count }, () => 0)
  return (
    ['1', `(${command})`, letter, 77, ...zeros(4), flags, ...zeros(12), 4242, ...zeros(30)].join(' ') + '\n'
  )
}

/** Starts a program in a mount namespace of its own. Users other than root also need a user namespace for that. */
const withOwnMounts = ['unshare', ...(process.geteuid?.() === 0 ? [] : ['--map-root-user']), '--mount']

function mayMount(): { skip: string | false } {
  if (!isLinux) return { skip: 'needs Linux' }
  const needed = needs({ program: 'unshare', from: 'util-linux' })
  if (needed.skip !== false) return needed
  const [program, ...words] = [...withOwnMounts, 'mount', '--bind', os.tmpdir(), '/proc/1']
  return { skip: spawnSync(program, words).status !== 0 && 'needs permission to mount' }
}

t.test('processStatus parses /proc/<pid>/stat', mayMount(), async (t) => {
  const directory = scratch(t)
  const exiting = 0x4
  const other = 0x400140
  const cases: [line: string, state: ProcessStatus['state']][] = [
    ...['R', 'S', 'I', 'W'].map((letter): (typeof cases)[0] => [statLine('bhyve', letter, other), 'running']),
    // D: waiting inside the kernel. t: stopped by a debugger, which continues the process.
    ...['D', 't'].map((letter): (typeof cases)[0] => [statLine('bhyve', letter, other), 'running']),
    [statLine('bhyve', 'T', other), 'stopped'],
    // Some kernels do not keep the flags of a dead process.
    [statLine('bhyve', 'Z', 0), 'zombie'],
    [statLine('bhyve', 'X', 0), 'zombie'],
    ...['R', 'S', 'D', 'T', 'Z'].map((letter): (typeof cases)[0] => [
      statLine('bhyve', letter, other | exiting),
      'zombie',
    ]),
    ...['a) Z 1 (b', ') T 0 0 0 0 0 4 ', '(', ')', ''].map((command): (typeof cases)[0] => [
      statLine(command, 'S', other),
      'running',
    ]),
  ]
  const torn = ['', '1 (bhyve', '1 (bhyve) S 0 0 0', statLine('bhyve', 'S', 0).replace(/ 4242.*/, '')]
  const lines = [...cases.map(([line]) => line), ...torn]
  fs.writeFileSync(path.join(directory, 'lines'), JSON.stringify(lines))
  const found = callOf('statuses', directory, ...withOwnMounts) as unknown[]
  t.equal(found.length, lines.length)
  for (const [index, [line, state]] of cases.entries())
    t.strictSame(found[index], { state, startedAt: '4242', parent: 77 }, line)
  for (const [index, line] of torn.entries())
    t.match(found[cases.length + index], { errno: errno.ESRCH, syscall: 'read' }, `torn: ${line}`)
})

/** Starts a program whose file name and kernel name are `name`. */
function running(t: Test, name: string): number {
  const file = path.join(scratch(t), name)
  fs.symlinkSync(execFileSync('sh', ['-c', 'command -v sleep'], { encoding: 'utf8' }).trim(), file)
  const child = spawn(file, ['60'], { argv0: 'sleep' })
  t.teardown(() => child.kill('SIGKILL'))
  return child.pid!
}

t.test('processStatus is not confused by a program name that resembles a status', needsLinux, async (t) => {
  for (const name of ['x) Z 1 (', ') T 0 0', 'bhyve: vm1']) {
    const pid = running(t, name)
    const text = (): string => fs.readFileSync(`/proc/${pid}/stat`, 'latin1')
    await until(() => text().includes(`(${name})`), 'the program')
    const startedAt = text()
      .slice(text().lastIndexOf(')') + 2)
      .split(' ')[19]
    t.strictSame(native.processStatus(pid), { state: 'running', startedAt, parent: process.pid }, name)
    process.kill(pid, 'SIGSTOP')
    await until(() => (native.processStatus(pid) as ProcessStatus).state === 'stopped', 'the stop')
  }
})
