/**
 * Real ZFS pools on files, for tests as root with Debian's zfs-fuse. Test files may run at the same time, so they share
 * one daemon: the first one starts it, and the last one ends it if a test has started it.
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import type { Test } from 'tap'
import { until } from './index.js'
import { type Needed, needs } from './programs.js'

/** The options for a test that needs a pool. */
export function needsPools(): Needed {
  const programs = needs({ program: 'zfs', from: 'zfs-fuse' }, 'zfs-fuse')
  if (programs.skip !== false) return programs
  if (process.getuid?.() !== 0) return { skip: 'needs root' }
  return fs.existsSync('/dev/fuse') ? { skip: false } : { skip: 'needs /dev/fuse' }
}

/** Runs zfs or zpool as an administrator would. */
export function command(line: string): string {
  const [program = '', ...args] = line.split(' ')
  return execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }).trim()
}

/** For commands that fail while a file system is in use: zfs-fuse may release it only after its unmount. */
export async function commandWhenIdle(line: string): Promise<void> {
  const [program = '', ...args] = line.split(' ')
  await until(() => spawnSync(program, args).status === 0, line)
}

export function get(name: string, property: string): string {
  return command(`zfs get -H -p -o value ${property} ${name}`)
}

export function exists(name: string): boolean {
  return spawnSync('zfs', ['list', '-H', name]).status === 0
}

let count = 0

/** A new pool, mounted in a temporary directory. It is destroyed at the end of the test. */
export async function pool(t: Test, megabytes = 256): Promise<{ name: string; root: string }> {
  await useDaemon(t)
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'bc-zfs-'))
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }))
  count++
  const name = `bc${String(process.pid)}x${String(count)}`
  const root = path.join(directory, 'mnt')
  const device = path.join(directory, 'device')
  fs.writeFileSync(device, '')
  fs.truncateSync(device, megabytes * 1024 * 1024)
  // Without a cache file: a pool of a killed test does not return with the next daemon.
  command(`zpool create -o cachefile=none -m ${root} ${name} ${device}`)
  // zfs-fuse may release a file system only after its unmount.
  const isDestroyed = (): boolean => spawnSync('zpool', ['destroy', '-f', name]).status === 0 || !exists(name)
  t.teardown(() => until(isDestroyed, `pool ${name} is destroyed`))
  return { name, root }
}

const shared = path.join(os.tmpdir(), 'bc-zfs-fuse')
const started = path.join(shared, 'daemon')
const user = path.join(shared, `user-${String(process.pid)}`)
let uses = 0

async function useDaemon(t: Test): Promise<void> {
  t.teardown(release)
  if (uses++ > 0) return
  await locked(async () => {
    fs.writeFileSync(user, '')
    if (answers()) return
    const daemon = spawn('zfs-fuse', ['--no-daemon', '--no-kstat-mount', '-m', '64'], {
      detached: true,
      stdio: 'ignore',
    })
    daemon.unref()
    fs.writeFileSync(started, String(daemon.pid))
    await until(() => answers() || daemon.exitCode !== null, 'zfs-fuse answers')
    if (daemon.exitCode !== null)
      throw new Error('zfs-fuse ended: is another one running that does not answer?')
  })
}

async function release(): Promise<void> {
  if (--uses > 0) return
  await locked(async () => {
    fs.rmSync(user, { force: true })
    const others = fs.readdirSync(shared).filter((name) => name.startsWith('user-'))
    if (others.some((name) => isAlive(Number(name.slice('user-'.length)))) || !fs.existsSync(started)) return
    const pid = Number(fs.readFileSync(started, 'utf8'))
    if (nameOf(pid) === 'zfs-fuse') process.kill(pid, 'SIGTERM')
    await until(() => nameOf(pid) !== 'zfs-fuse', 'zfs-fuse ends')
    fs.rmSync(started)
  })
}

function answers(): boolean {
  return spawnSync('zpool', ['list', '-H']).status === 0
}

/** Only one test process at a time decides about the daemon. The lock of a dead process does not count. */
async function locked(work: () => Promise<void>): Promise<void> {
  fs.mkdirSync(shared, { recursive: true, mode: 0o700 })
  const lock = path.join(shared, 'lock')
  const own = path.join(shared, `lock-${String(process.pid)}`)
  fs.writeFileSync(own, String(process.pid))
  try {
    await until(() => taken(own, lock), 'the lock of the ZFS daemon')
    try {
      await work()
    } finally {
      fs.rmSync(lock)
    }
  } finally {
    fs.rmSync(own, { force: true })
  }
}

function taken(own: string, lock: string): boolean {
  try {
    fs.linkSync(own, lock)
    return true
  } catch {
    const holder = fs.existsSync(lock) ? Number(fs.readFileSync(lock, 'utf8')) : process.pid
    if (!isAlive(holder)) fs.rmSync(lock, { force: true })
    return false
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

function nameOf(pid: number): string {
  try {
    const status = fs.readFileSync(`/proc/${String(pid)}/status`, 'utf8')
    return /^State:\s*Z/m.test(status) ? '' : (/^Name:\s*(.*)/.exec(status)?.[1] ?? '')
  } catch {
    return ''
  }
}
