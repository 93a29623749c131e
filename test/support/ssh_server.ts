/** A real sshd on the loopback, with keys and settings of its own. */
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import type { Test } from 'tap'
import { childEnvironment, scratch } from './index.js'
import type { RecipeHost } from './recipes.js'

/** sshd insists on being started by its full path. */
const sshdPath = spawnSync('sh', ['-c', 'command -v sshd'], { encoding: 'utf8' }).stdout.trim()
/** Debian's sshd refuses to start as root without this directory, which its service creates. */
const separation = '/run/sshd'

export interface SshServer {
  /** Its process. */
  sshd: ChildProcess
  /** The file for `ssh -F`. It names the server `host2`, and accepts the server's key only. */
  clientConfiguration: string
}

/** Starts sshd. Commands that it runs use the PATH of `host`. */
export async function startSshServer(t: Test, host: RecipeHost): Promise<SshServer> {
  const directory = scratch(t)
  for (const key of ['host', 'user'])
    execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', path.join(directory, key)])
  separateAsRoot(t)
  const port = await freePort()
  const settings = path.join(directory, 'sshd_config')
  fs.writeFileSync(settings, serverSettings(directory, port, host))
  const sshd = spawn(sshdPath, ['-D', '-e', '-f', settings], {
    env: childEnvironment(),
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  t.teardown(() => stop(sshd))
  await untilListening(sshd)
  const [type, key] = fs.readFileSync(path.join(directory, 'host.pub'), 'utf8').split(' ')
  fs.writeFileSync(path.join(directory, 'known_hosts'), `[127.0.0.1]:${port} ${type} ${key}\n`)
  const clientConfiguration = path.join(directory, 'ssh_config')
  fs.writeFileSync(clientConfiguration, clientSettings(directory, port))
  return { sshd, clientConfiguration }
}

function serverSettings(directory: string, port: number, host: RecipeHost): string {
  return `ListenAddress 127.0.0.1:${port}
HostKey ${directory}/host
AuthorizedKeysFile ${directory}/user.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv "PATH=${host.searchPath}"
`
}

function clientSettings(directory: string, port: number): string {
  return `Host host2
  HostName 127.0.0.1
  Port ${port}
  User ${os.userInfo().username}
  IdentityFile ${directory}/user
  IdentitiesOnly yes
  IdentityAgent none
  BatchMode yes
  StrictHostKeyChecking yes
  UserKnownHostsFile ${directory}/known_hosts
  GlobalKnownHostsFile /dev/null
`
}

function separateAsRoot(t: Test): void {
  if (process.getuid?.() !== 0 || process.platform !== 'linux' || fs.existsSync(separation)) return
  fs.mkdirSync(separation, { mode: 0o755 })
  t.teardown(() => fs.rmdirSync(separation))
}

async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as net.AddressInfo
  server.close()
  await once(server, 'close')
  return port
}

function untilListening(sshd: ChildProcess): Promise<void> {
  let log = ''
  return new Promise((resolve, reject) => {
    sshd.stderr!.setEncoding('utf8').on('data', (text: string) => {
      log += text
      if (log.includes('Server listening')) resolve()
    })
    sshd.once('exit', () => reject(new Error(`sshd has ended: ${log}`)))
  })
}

async function stop(sshd: ChildProcess): Promise<void> {
  if (sshd.exitCode !== null || sshd.signalCode !== null) return
  sshd.kill('SIGTERM')
  await once(sshd, 'exit')
}
