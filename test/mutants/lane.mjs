/**
 * A copy of the project in which one test runs at a time, in namespaces of its own. Processes that a mutant leaves
 * running end with the test, and other tests do not see its sockets in bhyve's default directory. Needs root on Linux.
 */
import { spawn, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { unbundle } from './transpile.mjs'

const inNamespaces = [
  ...['--mount', '--pid', '--fork', '--kill-child', '--mount-proc', 'sh', '-c'],
  'mkdir -p /run/bhyve && mount -t tmpfs tmpfs /run/bhyve && exec "$@"',
  'sh',
]

export class Lane {
  constructor(root, directory) {
    this.root = path.join(directory, 'p')
    this.scratch = path.join(directory, 't')
    if (fs.existsSync(this.root)) return
    fs.mkdirSync(directory, { recursive: true })
    must('git', ['clone', '-q', root, this.root])
    must('cp', ['-a', 'node_modules', 'build', 'dist', this.root], root)
    // The copied configuration names the original directory, and would build that one.
    fs.rmSync(path.join(this.root, 'build/CMakeCache.txt'), { force: true })
    fs.rmSync(path.join(this.root, 'build/CMakeFiles'), { recursive: true, force: true })
    unbundle(this.root)
  }

  /** Resolves to whether the test passed, or to undefined if it did not end in time. */
  async passes({ name, command, args }, { seconds, env = {} }) {
    fs.mkdirSync(this.scratch, { recursive: true })
    const log = fs.openSync(path.join(this.scratch, '..', `${name}.log`), 'w')
    const child = spawn('unshare', [...inNamespaces, command, ...args], {
      cwd: this.root,
      env: { ...process.env, TMPDIR: this.scratch, ...env },
      stdio: ['ignore', log, log],
      // A mutant may send a signal to its process group.
      detached: true,
    })
    fs.closeSync(log)
    let late = false
    const timer = setTimeout(() => {
      late = true
      child.kill('SIGKILL')
    }, seconds * 1000)
    const code = await new Promise((resolve, reject) => child.on('error', reject).on('close', resolve))
    clearTimeout(timer)
    fs.rmSync(this.scratch, { recursive: true, force: true })
    return late ? undefined : code === 0
  }
}

export function must(command, args, cwd) {
  const { status, stderr } = spawnSync(command, args, { cwd, encoding: 'utf8', maxBuffer: 2 ** 28 })
  if (status !== 0) throw new Error(`${command} ${args.join(' ')} failed: ${stderr}`)
}
