/** Sockets of a bhyve of another user, of a dead bhyve and of a stopped one. */
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { createCheckpoint, createClient } from 'bhyve-checkpoint'
import { PeerMemory } from '../../dist/bhyve/peer_memory.js'
import { createClientIn } from '../../dist/client/client.js'
import { isFailure } from '../../dist/base/native.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import {
  childEnvironment,
  intercept,
  rejection,
  scratch,
  serveByHand,
  tree,
  until,
} from '../support/index.js'
import { forAnyUser } from '../support/any_user.js'
import { start } from '../support/small_vm.js'

const native = loadSimulatorNative()
const isRoot = process.geteuid?.() === 0
const needsRoot = { skip: isRoot ? false : 'needs root' }

/** Starts a simulated bhyve as another user. Returns the directory of its socket. */
async function startAsNobody(t: Test, dialect: string): Promise<{ directory: string; run: string }> {
  const directory = scratch(t)
  fs.chmodSync(directory, 0o755)
  const run = path.join(directory, 'run')
  fs.mkdirSync(run)
  fs.chownSync(run, 65534, 65534)
  const script = forAnyUser('bhyve-as-user.mjs')
  const child = spawn(process.execPath, [script, run, '65534', dialect], {
    stdio: ['pipe', 'ignore', 'ignore'],
    env: childEnvironment(),
  })
  t.teardown(() => child.kill('SIGKILL'))
  await until(() => fs.existsSync(path.join(run, 'vm1')), 'the socket')
  return { directory, run }
}

t.test('nothing is sent if socket and bhyve belong to different trusted users', needsRoot, async (t) => {
  const { directory, run } = await startAsNobody(t, 'descriptor')
  fs.chownSync(path.join(run, 'vm1'), 12345, 12345)
  const checkpointDirectory = path.join(directory, 'c')
  const options = { runDirectory: run, checkpointDirectory, dialect: 'descriptor' } as const
  const client = createClient({ ...options, trustedUids: [0, 12345, 65534] })
  for (const call of [() => client.createCheckpoint('vm1'), () => client.suspend('vm1')]) {
    t.match(await rejection(call()), {
      code: 'ERR_UNTRUSTED_PEER',
      message: /runs as uid 65534.*belongs to uid 12345/,
    })
  }
  t.match(await rejection(client.pause('vm1')), { code: 'ERR_UNTRUSTED_PEER' })
  t.strictSame(tree(checkpointDirectory), [])
})

t.test('the second request is not sent if another process took over the socket', async (t) => {
  const directory = fs.realpathSync(scratch(t))
  const { serve } = serveByHand(t, directory)
  const system = { platform: 'linux', release: '6.1' } as const
  const client = createClientIn(
    { ...hostEnvironment, peers: new PeerMemory(), system },
    { runDirectory: directory, checkpointDirectory: path.join(directory, 'c') },
  )
  let requests = 0
  intercept(t, 'peerOf', () => {
    // The second connection reaches another process.
    return ++requests === 1 ? undefined : { uid: process.geteuid!(), pid: process.ppid }
  })
  const created = rejection(client.createCheckpoint('vm1', { stallTimeout: 10_000 }))
  await serve(() => undefined)
  t.match(await created, {
    code: 'ERR_VM_NOT_RUNNING',
    vm: 'vm1',
    message: /Another process has taken over the socket.*Nothing was sent to it/,
  })
  t.equal(requests, 2)
  t.strictSame(tree(path.join(directory, 'c')), [])
})

t.test('no second request is sent if bhyve died after the first', async (t) => {
  const system = { platform: 'linux', release: '6.1' } as const
  for (const poweroff of [false, true]) {
    const { runDirectory } = await start(t, { fault: { at: 'receive', kind: 'kill' } })
    const client = createClientIn(
      { ...hostEnvironment, peers: new PeerMemory(), system },
      { runDirectory, checkpointDirectory: scratch(t) },
    )
    t.match(await rejection(client.createCheckpoint('vm1', { poweroff })), {
      code: poweroff ? 'ERR_SUSPEND_FAILED' : 'ERR_CHECKPOINT_FAILED',
      vmState: 'off',
    })
  }
})

t.test('a path bhyve of another user gets no request in another dialect', needsRoot, async (t) => {
  const { directory, run } = await startAsNobody(t, 'path')
  const before = tree(run)
  const system = { platform: 'freebsd', release: '13.2-RELEASE' } as const
  for (const dialect of ['auto', 'path'] as const) {
    const options = {
      runDirectory: run,
      checkpointDirectory: path.join(directory, 'c'),
      trustedUids: [0, 65534],
    }
    const client = createClientIn({ ...hostEnvironment, system }, { ...options, dialect })
    t.match(await rejection(client.createCheckpoint('vm1')), { code: 'ERR_PERMISSION', vm: 'vm1' }, dialect)
  }
  t.strictSame(tree(run), before, 'no stray file in its working directory')
})

t.test('a dead bhyve whose VM still exists in the kernel is reported as not running', async (t) => {
  const directory = scratch(t)
  const vmmDirectory = path.join(directory, 'vmm')
  fs.mkdirSync(vmmDirectory)
  fs.writeFileSync(path.join(vmmDirectory, 'vm1'), '')
  const environment = { ...hostEnvironment, vmmDirectory, peers: new PeerMemory() }
  const die = (socketPath: string): void => {
    const dead = native.simulator.listenStream(socketPath, 1)
    if (!isFailure(dead)) native.close(dead)
  }
  die(path.join(directory, 'vm1'))
  const checkpointDirectory = path.join(directory, 'c')
  const client = createClientIn(environment, { runDirectory: directory, checkpointDirectory })
  t.match(await rejection(client.createCheckpoint('vm1', { stallTimeout: 200 })), {
    code: 'ERR_VM_NOT_RUNNING',
    vmState: 'unknown',
  })
  const socketPath = path.join(directory, 'vm1')
  const { dev, ino, ctimeMs, uid } = fs.lstatSync(socketPath)
  environment.peers.rememberPeer(
    { socketPath, kind: 'nvlist', ownerUid: uid, identity: `${dev}:${ino}:${ctimeMs}`, changedMs: ctimeMs },
    { uid, pid: 2 ** 30, startedAt: 'once' },
  )
  t.match(
    await rejection(client.createCheckpoint('vm1', { stallTimeout: 0, timeout: 5000 })),
    { code: 'ERR_VM_NOT_RUNNING', vmState: 'unknown' },
    'does not wait for a process that is known to have ended',
  )
  t.notOk(fs.existsSync(checkpointDirectory))
  const { runDirectory } = await start(t)
  fs.mkdirSync(path.join(runDirectory, 'checkpoint'))
  die(path.join(runDirectory, 'checkpoint/vm1'))
  const upgraded = createClientIn(environment, { runDirectory, checkpointDirectory })
  t.match(
    await upgraded.createCheckpoint('vm1'),
    { name: 'checkpoint' },
    'ignores a dead socket of dialect struct',
  )
})

t.test('repeated calls to a stopped VM do not fill its backlog', async (t) => {
  const bhyve = await start(t)
  const options = {
    runDirectory: bhyve.runDirectory,
    checkpointDirectory: scratch(t),
    dialect: 'descriptor',
  } as const
  process.kill(bhyve.pid, 'SIGSTOP')
  await until(() => {
    const status = native.processStatus(bhyve.pid)
    return !isFailure(status) && status.state === 'stopped'
  }, 'the stop')
  for (let call = 0; call < 40; call++) {
    t.match(await rejection(createCheckpoint('vm1', options)), { code: 'ERR_VM_PAUSED', vmState: 'paused' })
  }
  process.kill(bhyve.pid, 'SIGCONT')
  t.match(await createCheckpoint('vm1', options), { name: 'checkpoint' })
})
