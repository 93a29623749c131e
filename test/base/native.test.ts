/** What the addon promises and no call of the library shows: what is inherited, followed, waited for, or half read. */
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
// Without the kernel's calls a process that is traced already cannot be traced: what looks for leaks does that.
const untraced = { ASAN_OPTIONS: `${process.env.ASAN_OPTIONS ?? ''}:detect_leaks=0` }

function opened(result: number | Failure): number {
  if (isFailure(result)) throw new Error(`${result.syscall}: ${String(result.errno)}`)
  return result
}

/** A call in a process of its own, behind the words of a program that starts it. What never ends is killed. */
function callOf(which: string, directory: string, ...starter: string[]): unknown {
  const [program, ...words] = [...starter, process.execPath, script, which, directory]
  const options = { encoding: 'utf8', env: childEnvironment(untraced), timeout: 20_000 } as const
  return JSON.parse(execFileSync(program, words, { ...options, stdio: ['ignore', 'pipe', 'inherit'] }))
}

/** By what the kernel says of the descriptor. */
function isInherited(descriptor: number): boolean {
  const closeOnExec = 0o2000000
  const [, flags] = /^flags:\s+(\d+)$/m.exec(fs.readFileSync(`/proc/self/fdinfo/${descriptor}`, 'utf8'))!
  return (Number.parseInt(flags!, 8) & closeOnExec) === 0
}

t.test('no descriptor that a call returns is inherited', needsLinux, async (t) => {
  const directory = scratch(t)
  const before = native.ownedDescriptors()
  const { O_DIRECTORY, O_WRONLY, O_CREAT } = fs.constants
  const folder = opened(native.openPath(directory, O_DIRECTORY))
  const listener = opened(native.simulator.listenStream(path.join(directory, 'stream'), 1))
  const client = opened(native.connectStream(path.join(directory, 'stream')))
  const server = opened(native.simulator.accept(listener))
  opened(native.sendDescriptor(client, folder))
  const received = native.simulator.receiveDescriptors(server, 1)
  if (isFailure(received)) return t.fail('recvmsg')
  const status = native.processStatus(process.pid)
  if (isFailure(status)) return t.fail('this process lives')
  const all: Record<string, number> = {
    openPath: folder,
    openAt: opened(native.openAt(folder, 'file', O_WRONLY | O_CREAT, 0o600)),
    listenStream: listener,
    connectStream: client,
    accept: server,
    receiveDescriptors: received.descriptors[0]!,
    bindDatagram: opened(native.simulator.bindDatagram(path.join(directory, 'datagram'))),
    watchProcess: opened(native.watchProcess(process.pid, status.startedAt)),
    adopt: opened(native.adopt(folder)),
  }
  t.equal(native.ownedDescriptors() - before, Object.keys(all).length)
  for (const [call, descriptor] of Object.entries(all)) {
    t.equal(isInherited(descriptor), false, call)
    native.close(descriptor)
  }
})

t.test('nor one that a call opens for itself', needs('strace'), async (t) => {
  const directory = scratch(t)
  fs.writeFileSync(path.join(directory, 'file'), 'text')
  const log = path.join(scratch(t), 'trace')
  const failed = callOf('opening', directory, 'strace', '-f', '-qq', '-e', 'trace=open,openat', '-o', log)
  t.strictSame(failed, [])
  const [, traced = ''] = /marker-begin".*\n([^]*)\n.*marker-end"/.exec(fs.readFileSync(log, 'utf8'))!
  const lines = traced.split('\n')
  const places = ['"."', '"file"', '/stat"', '/stat"', '/boot_id"']
  t.equal(lines.length, places.length, traced)
  for (const [index, place] of places.entries()) t.ok(lines[index]!.includes(place), place)
  t.strictSame(
    lines.filter((line) => !line.includes('O_CLOEXEC')),
    [],
  )
})

t.test('the start of a file is read through no link', async (t) => {
  const directory = scratch(t)
  fs.writeFileSync(path.join(directory, 'file'), 'secret')
  fs.symlinkSync('file', path.join(directory, 'link'))
  const folder = opened(native.openPath(directory, fs.constants.O_DIRECTORY))
  const bytes = Buffer.alloc(3)
  t.equal(native.readStartAt(folder, 'file', bytes), 3)
  t.equal(bytes.toString(), 'sec')
  const followed = native.readStartAt(folder, 'link', bytes)
  t.ok(isFailure(followed) && [errno.ELOOP, errno.EMLINK].includes(followed.errno), JSON.stringify(followed))
  t.match(native.readStartAt(folder, '.', bytes), { errno: errno.EISDIR }, 'nor of a folder')
  native.close(folder)
})

t.test('the start of a FIFO is not waited for', async (t) => {
  const directory = scratch(t)
  execFileSync('mkfifo', [path.join(directory, 'file')])
  t.equal(callOf('start', directory), 0)
})

t.test('a folder is read to its end or not at all', needs('strace'), async (t) => {
  const directory = fs.realpathSync(scratch(t))
  const count = 1000
  // So many that the system gives them in several portions.
  for (let index = 0; index < count; index++)
    fs.writeFileSync(path.join(directory, `${'n'.repeat(200)}${index}`), '')
  t.equal(callOf('list', directory), count)
  const inject = 'inject=getdents64:error=EIO:when=2+'
  const starter = ['strace', '-f', '-qq', '-P', directory, '-e', inject, '-o', '/dev/null']
  t.strictSame(callOf('list', directory, ...starter), { errno: errno.EIO, syscall: 'readdir' })
})

t.test('a lock that cannot be asked for is not held by somebody else', async (t) => {
  const gone = opened(native.openPath(scratch(t), fs.constants.O_DIRECTORY))
  native.close(gone)
  for (const descriptor of [-1, gone])
    t.match(native.lock(descriptor, 'exclusive'), { errno: errno.EBADF, syscall: 'flock' })
})

/** A line of /proc/<pid>/stat: the command, the state's letter, the flags, and 4242 as the time of the start. */
function statLine(command: string, letter: string, flags: number): string {
  const zeros = (count: number): number[] => Array.from({ length: count }, () => 0)
  return ['1', `(${command})`, letter, ...zeros(5), flags, ...zeros(12), 4242, ...zeros(30)].join(' ') + '\n'
}

/** A mount that nobody else sees; a plain user needs a user namespace for it. */
const alone = ['unshare', ...(process.geteuid?.() === 0 ? [] : ['--map-root-user']), '--mount']

function mayMount(): { skip: string | false } {
  if (!isLinux) return { skip: 'needs Linux' }
  const needed = needs({ program: 'unshare', from: 'util-linux' })
  if (needed.skip !== false) return needed
  const [program, ...words] = [...alone, 'mount', '--bind', os.tmpdir(), '/proc/1']
  return { skip: spawnSync(program, words).status !== 0 && 'needs the right to mount' }
}

t.test('what Linux says of a process', mayMount(), async (t) => {
  const directory = scratch(t)
  const exiting = 0x4
  const other = 0x400140
  const cases: [line: string, state: ProcessStatus['state']][] = [
    ...['R', 'S', 'I', 'W'].map((letter): (typeof cases)[0] => [statLine('bhyve', letter, other), 'running']),
    // In the kernel; and stopped for a debugger, which lets it go on.
    ...['D', 't'].map((letter): (typeof cases)[0] => [statLine('bhyve', letter, other), 'running']),
    [statLine('bhyve', 'T', other), 'stopped'],
    // Not every kernel keeps the flags.
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
  const found = callOf('statuses', directory, ...alone) as unknown[]
  t.equal(found.length, lines.length)
  for (const [index, [line, state]] of cases.entries())
    t.strictSame(found[index], { state, startedAt: '4242' }, line)
  for (const [index, line] of torn.entries())
    t.match(found[cases.length + index], { errno: errno.ESRCH, syscall: 'read' }, `torn: ${line}`)
})

/** A program that runs under this name, in the file system and for the kernel. */
function running(t: Test, name: string): number {
  const file = path.join(scratch(t), name)
  fs.symlinkSync(execFileSync('sh', ['-c', 'command -v sleep'], { encoding: 'utf8' }).trim(), file)
  const child = spawn(file, ['60'], { argv0: 'sleep' })
  t.teardown(() => child.kill('SIGKILL'))
  return child.pid!
}

t.test("a program's name is no part of its status", needsLinux, async (t) => {
  for (const name of ['x) Z 1 (', ') T 0 0', 'bhyve: vm1']) {
    const pid = running(t, name)
    const text = (): string => fs.readFileSync(`/proc/${pid}/stat`, 'latin1')
    await until(() => text().includes(`(${name})`), 'the program')
    const startedAt = text()
      .slice(text().lastIndexOf(')') + 2)
      .split(' ')[19]
    t.strictSame(native.processStatus(pid), { state: 'running', startedAt }, name)
    process.kill(pid, 'SIGSTOP')
    await until(() => (native.processStatus(pid) as ProcessStatus).state === 'stopped', 'the stop')
  }
})
