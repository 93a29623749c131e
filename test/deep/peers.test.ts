/** Hostile peers and the files that they leave: a hostile bhyve can only fail its own checkpoint. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import net from 'node:net'
import path from 'node:path'
import readline from 'node:readline'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { type CheckpointClient, createClient, type CreateOptions } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { isFailure } from '../../dist/base/native.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import { jobs } from '../../dist/worker/jobs.js'
// @ts-expect-error: a plain module, shared with programs that are not TypeScript
import { litter as anyLitter, plants as anyPlants } from '../support/plants.mjs'
import { mounted } from '../support/image_world.js'
import {
  checkpointFiles,
  childEnvironment,
  openDescriptors,
  rejection,
  scratch,
  serveByHand,
  tree,
  until,
} from '../support/index.js'

type Plant = (directory: string, secret: string) => void
const plants = anyPlants as Record<string, Plant>
const litter = anyLitter as Record<string, Plant>
const native = loadSimulatorNative()
const MiB = 1024 * 1024
const isRoot = process.geteuid?.() === 0
const needsRoot = { skip: isRoot ? false : 'needs root' }
/** The child reaches its inbox through `/proc/self/fd`. */
const needsOtherUser = { skip: isRoot && process.platform === 'linux' ? false : 'needs root on Linux' }
const stranger = 65534

interface World {
  /** The run directory. */
  run: string
  root: string
  /** A file that must never be published, followed or changed. */
  secret: string
  client: CheckpointClient
}

function world(t: Test, options: { dialect?: 'path' | 'descriptor'; trustedUids?: number[] } = {}): World {
  const directory = fs.realpathSync(scratch(t))
  fs.chmodSync(directory, 0o755)
  const run = path.join(directory, 'run')
  fs.mkdirSync(run)
  const secret = path.join(directory, 'secret')
  fs.writeFileSync(secret, 'secret')
  const root = path.join(directory, 'c')
  const client = createClient({
    runDirectory: run,
    checkpointDirectory: root,
    dialect: 'descriptor',
    ...options,
  })
  return { run, root, secret, client }
}

/** Listens in this process. `serve` gets each connection. */
async function listen(t: Test, run: string, serve: (socket: net.Socket) => void): Promise<void> {
  const server = net.createServer((socket) => {
    t.teardown(() => socket.destroy())
    socket.on('error', () => undefined)
    serve(socket)
  })
  await new Promise<void>((resolve) => server.listen(path.join(run, 'vm1'), resolve))
  t.teardown(() => server.close())
}

// ---- request and reply --------------------------------------------------------------------------

t.test('create: ends at its timeout when the peer never reads and never closes', async (t) => {
  const { run, root, client } = world(t)
  await listen(t, run, (socket) => socket.pause())
  const options = { stallTimeout: 200 }
  t.match(await rejection(client.createCheckpoint('vm1', options)), { code: 'ERR_STALLED', vm: 'vm1' })
  t.match(await rejection(client.createCheckpoint('vm1', { timeout: 200 })), { code: 'ERR_TIMEOUT' })
  t.strictSame(await client.listCheckpoints('vm1'), [])
  const files = checkpointFiles(path.join(root, 'vm1')).filter((entry) => !/\/$|\/(live|peer)$/.test(entry))
  t.strictSame(files, [], 'only the stages that the peer may still write to are left, with their records')
})

t.test('create: a reply of gigabytes does not use memory', async (t) => {
  const { run, root, client } = world(t)
  const total = 2048 * MiB
  // The peer runs in a process of its own, so that the measured memory is the client's.
  const script = `
    const net = require('node:net')
    const chunk = Buffer.alloc(${MiB}, 'x')
    net.createServer((socket) => {
      let left = ${total / MiB}
      socket.on('error', () => undefined).resume()
      const pour = () => left-- > 0 ? socket.write(chunk, pour) : socket.end()
      pour()
    }).listen(process.argv[1])`
  const child = spawn(process.execPath, ['-e', script, path.join(run, 'vm1')], { env: childEnvironment() })
  t.teardown(() => child.kill('SIGKILL'))
  await until(() => fs.existsSync(path.join(run, 'vm1')), 'the socket')
  const before = process.memoryUsage.rss()
  let most = 0
  const watch = setInterval(() => (most = Math.max(most, process.memoryUsage.rss())), 5)
  t.teardown(() => clearInterval(watch))
  const error = await rejection(client.createCheckpoint('vm1', { stallTimeout: 0 }))
  t.match(error, { code: 'ERR_CHECKPOINT_FAILED', reply: undefined, vmState: 'running' })
  t.ok(most - before < 256 * MiB, `memory grew by at most ${Math.round((most - before) / MiB)} MiB`)
  t.strictSame(tree(root), [])
})

t.test('create and suspend: reject malformed and false replies', async (t) => {
  const text = (value: string) => native.simulator.encodeNvlist([{ name: 'error', type: 'string', value }])
  const answers: [string, Buffer, string | undefined][] = [
    ['garbage', Buffer.from('HTTP/1.1 200 OK\r\n\r\n'), undefined],
    ['half a reply', text('no').subarray(0, 20), undefined],
    ['two replies', Buffer.concat([text('one'), text('two')]), undefined],
    ['success without files', native.simulator.encodeNvlist([]), undefined],
    [
      'a reply of another type',
      native.simulator.encodeNvlist([{ name: 'error', type: 'number', value: 1n }]),
      undefined,
    ],
    ['terminal escape sequences', text('\u001b[2J\nall is well\u009b'), ' [2J all is well '],
    ['a very long text', text('x'.repeat(60_000)), 'x'.repeat(1000)],
  ]
  for (const [what, answer, reply] of answers) {
    // Without an error in the reply, a suspend waits for the exit of bhyve. That would take too long here.
    for (const poweroff of reply === undefined ? [false] : [false, true]) {
      const { run, root, client } = world(t)
      await listen(t, run, (socket) => socket.resume().end(answer))
      const call = poweroff ? client.suspend('vm1') : client.createCheckpoint('vm1')
      const error = await rejection(call)
      const code = poweroff ? 'ERR_SUSPEND_FAILED' : 'ERR_CHECKPOINT_FAILED'
      t.match(error, { code, vmState: 'running' }, what)
      t.equal(error.reply, reply, what)
      t.notMatch(error.message, /\p{Cc}/u, what)
      t.strictSame(tree(root), [], `${what}: no files are left`)
    }
  }
})

t.test('create: closes descriptors that the peer sends', async (t) => {
  const { run, client } = world(t, { dialect: 'path' })
  const listener = native.simulator.listenStream(path.join(run, 'vm1'), 5)
  if (isFailure(listener)) return t.fail('listen')
  t.teardown(() => native.close(listener))
  const serve = async (): Promise<void> => {
    let connection = -1
    await until(() => {
      const accepted = native.simulator.accept(listener)
      if (isFailure(accepted)) return false
      connection = accepted
      return true
    }, 'a connection')
    for (let sent = 0; sent < 20; sent++) {
      t.notOk(isFailure(native.sendDescriptor(connection, listener)), 'the descriptor was sent')
      await new Promise(setImmediate)
    }
    native.close(connection)
  }
  const round = async (): Promise<void> => {
    const call = rejection(client.createCheckpoint('vm1'))
    await serve()
    t.match(await call, { code: 'ERR_CHECKPOINT_FAILED' })
  }
  await round()
  const before = openDescriptors()
  for (let call = 0; call < 5; call++) await round()
  t.ok(openDescriptors() <= before, `${openDescriptors()} descriptors, before ${before}`)
})

t.test('create: rejects when the peer closes after any byte of the request', async (t) => {
  for (const dialect of ['path', 'descriptor'] as const) {
    const { run, root, client } = world(t, { dialect })
    let wanted = 0
    let longest = 0
    await listen(t, run, (socket) => {
      let seen = 0
      const leave = () => socket.destroy()
      socket.once('end', leave)
      socket.on('readable', () => {
        while (seen < wanted && socket.read(1) !== null) seen++
        longest = Math.max(longest, seen)
        if (seen === wanted) leave()
      })
    })
    const attempt = () => rejection(client.createCheckpoint('vm1', { stallTimeout: 0 }))
    wanted = Infinity
    await attempt()
    const before = openDescriptors()
    for (wanted = 0; wanted <= longest; wanted++) {
      const error = await attempt()
      t.match(error, { code: 'ERR_CHECKPOINT_FAILED', vmState: 'running' }, `${dialect}, byte ${wanted}`)
    }
    t.ok(longest > 100, `${dialect}: ${longest} bytes`)
    t.ok(openDescriptors() <= before + 2, 'no descriptor leaks')
    t.strictSame(tree(root), [])
  }
})

// ---- the path of the socket ---------------------------------------------------------------------

t.test('calls neither open nor connect to a path that is not a socket', async (t) => {
  const kinds: Record<string, (file: string, live: string) => void> = {
    'a symlink to a live socket': (file, live) => fs.symlinkSync(live, file),
    'a FIFO': (file) => execFileSync('mkfifo', [file]),
    'a directory': (file) => fs.mkdirSync(file),
    'a file': (file) => fs.writeFileSync(file, ''),
  }
  const live = await SimulatedBhyve.start({ vm: 'other', memoryBytes: MiB })
  t.teardown(() => live.stop())
  for (const [what, make] of Object.entries(kinds)) {
    const { run, root, client } = world(t)
    make(path.join(run, 'vm1'), live.socketPath)
    for (const call of [() => client.createCheckpoint('vm1'), () => client.suspend('vm1')])
      t.match(await rejection(call()), { code: 'ERR_VM_NOT_RUNNING', vm: 'vm1' }, what)
    t.match(await rejection(client.pause('vm1')), { code: 'ERR_VM_NOT_RUNNING' }, what)
    t.strictSame(await client.listVirtualMachines(), [], what)
    t.notOk(fs.existsSync(root), what)
  }
})

t.test('calls reject a run directory in which other users can replace sockets', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: MiB })
  t.teardown(() => bhyve.stop())
  const { runDirectory } = bhyve
  const root = scratch(t)
  const client = createClient({ runDirectory, checkpointDirectory: root })
  fs.chmodSync(runDirectory, 0o777)
  const untrusted = { code: 'ERR_UNTRUSTED_PEER', vm: 'vm1', message: /chmod o-w/ }
  t.match(await rejection(client.createCheckpoint('vm1')), untrusted)
  t.match(await rejection(client.suspend('vm1')), untrusted)
  t.match(await rejection(client.pause('vm1')), untrusted)
  t.match(await client.listVirtualMachines(), [{ vm: 'vm1', state: 'unknown' }])
  t.strictSame(tree(root), [])
  for (const mode of [0o1777, 0o775, 0o700]) {
    fs.chmodSync(runDirectory, mode)
    t.match(await client.createCheckpoint('vm1'), { name: 'checkpoint' }, mode.toString(8))
  }
  fs.mkdirSync(path.join(runDirectory, 'checkpoint'))
  fs.chmodSync(path.join(runDirectory, 'checkpoint'), 0o777)
  t.match(await rejection(client.createCheckpoint('vm1')), untrusted, "the older path's directory")
  fs.rmdirSync(path.join(runDirectory, 'checkpoint'))
  t.match(await client.listVirtualMachines(), [{ vm: 'vm1', state: 'running' }])
})

t.test("calls reject a second name of another VM's socket", async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'other', memoryBytes: MiB })
  t.teardown(() => bhyve.stop())
  fs.linkSync(bhyve.socketPath, path.join(bhyve.runDirectory, 'vm1'))
  const root = scratch(t)
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: root })
  const untrusted = { code: 'ERR_UNTRUSTED_PEER', vm: 'vm1', message: /2 hard links/ }
  t.match(await rejection(client.suspend('vm1')), untrusted)
  t.strictSame(tree(root), [])
  fs.rmSync(path.join(bhyve.runDirectory, 'vm1'))
  t.match(await client.createCheckpoint('other'), { name: 'checkpoint' })
})

t.test('create: rejects the run directory and the socket of an untrusted user', needsOtherUser, async (t) => {
  const { run, root } = world(t)
  const { child } = await hostile(t, run)
  const clientTrusting = (trustedUids: number[]) =>
    createClient({ runDirectory: run, checkpointDirectory: root, dialect: 'descriptor', trustedUids })
  const first = await rejection(clientTrusting([0]).createCheckpoint('vm1'))
  t.match(first, { code: 'ERR_UNTRUSTED_PEER', message: /run directory '.*' belongs to uid 65534/ })
  fs.chownSync(run, 0, 0)
  const error = await rejection(clientTrusting([0]).createCheckpoint('vm1'))
  t.match(error, { code: 'ERR_UNTRUSTED_PEER', message: /socket '.*' belongs to uid 65534/ })
  t.notOk(fs.existsSync(root))
  t.equal(child.exitCode, null)
})

// ---- planted files ------------------------------------------------------------------------------

interface Order {
  plant?: string
  good?: boolean
  secret?: string
  end?: 'exit'
}

/** Starts a bhyve of another user that plants files in its inbox on order. */
async function hostile(
  t: Test,
  run: string,
): Promise<{ child: ChildProcess; order: (order: Order) => Promise<void> }> {
  fs.chownSync(run, stranger, stranger)
  const script = fileURLToPath(new URL('../support/hostile-bhyve.mjs', import.meta.url))
  const child = spawn(process.execPath, [script, run, String(stranger)], {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: childEnvironment(),
  })
  t.teardown(() => child.kill('SIGKILL'))
  await until(() => fs.existsSync(path.join(run, 'vm1')), 'the socket')
  const answers = readline.createInterface({ input: child.stdout })
  const order = async (what: Order): Promise<void> => {
    const exit = once(child, 'exit')
    const answered = what.end === 'exit' ? exit : once(answers, 'line')
    child.stdin.write(`${JSON.stringify(what)}\n`)
    await Promise.race([answered, exit])
    if (what.end !== 'exit') t.equal(child.exitCode, null, 'the hostile process is still running')
  }
  return { child, order }
}

/**
 * The store contains only regular files with one link and without the secret's content. Kept files of a VM that is gone
 * are exempt.
 */
function assertNothingEscaped(t: Test, { root, secret }: World, what: string): void {
  t.equal(fs.readFileSync(secret, 'utf8'), 'secret', `${what}: the secret is unchanged`)
  t.equal(fs.statSync(secret).nlink, 1, `${what}: the secret has one link`)
  const entries = fs.existsSync(root) ? fs.readdirSync(root, { recursive: true, withFileTypes: true }) : []
  for (const entry of entries) {
    const file = path.join(entry.parentPath, entry.name)
    if (file.includes('.ckp.rest/')) continue
    const status = fs.lstatSync(file)
    t.ok(status.isDirectory() || (status.isFile() && status.nlink === 1), `${what}: ${file}`)
    if (status.isFile() && status.size < MiB)
      t.notOk(fs.readFileSync(file, 'latin1').includes('secret'), `${what}: ${file}`)
  }
}

t.test('create: publishes no files planted by the same user', async (t) => {
  const here = world(t, { dialect: 'path' })
  const { root, client, secret } = here
  const { serve } = serveByHand(t, here.run)
  const all: Record<string, Plant> = { ...plants }
  if (isRoot) {
    for (const [what, number] of [
      ['zeros', '5'],
      ['a terminal', '10'],
    ] as const)
      all[`a device of ${what}`] = (inbox) =>
        ['ckp', 'ckp.kern', 'ckp.meta'].forEach((name) =>
          execFileSync('mknod', [path.join(inbox, name), 'c', '1', number]),
        )
  }
  for (const [what, plant] of Object.entries(all)) {
    const call = rejection(client.createCheckpoint('vm1'))
    await serve((directory) => plant(directory, secret))
    t.match(await call, { code: 'ERR_CHECKPOINT_FAILED', vm: 'vm1' }, what)
    assertNothingEscaped(t, here, what)
    t.strictSame(tree(root), [], `${what}: no files are left`)
  }
})

/** Plants that bhyve does not notice. A suspend that fails because of them waits for the exit of bhyve. */
function waits(plant: string): boolean {
  return / for ckp|metadata|names/.test(plant) && plant !== 'a link to a secret for ckp'
}

const operations: Record<string, (client: CheckpointClient, options?: CreateOptions) => Promise<unknown>> = {
  ERR_CHECKPOINT_FAILED: (client, options) => client.createCheckpoint('vm1', options),
  ERR_SUSPEND_FAILED: (client) => client.suspend('vm1'),
}

t.test('create and suspend: publish no files planted by another user', needsOtherUser, async (t) => {
  const here = world(t, { trustedUids: [0, stranger] })
  const { run, root, client, secret } = here
  const { order } = await hostile(t, run)
  for (const [code, operation] of Object.entries(operations)) {
    for (const plant of Object.keys(plants)) {
      // If only the metadata are damaged, a suspend waits for the exit of bhyve. One such test is enough.
      if (code === 'ERR_SUSPEND_FAILED' && waits(plant)) continue
      const what = `${code}: ${plant}`
      const call = rejection(operation(client))
      await order({ plant, secret })
      t.match(await call, { code, vm: 'vm1', vmState: 'running' }, what)
      assertNothingEscaped(t, here, what)
      t.strictSame(tree(root), [], `${what}: no files are left`)
    }
  }
})

const tmpfs = mounted(t, 'tmpfs', 64 * 2 ** 20)

t.test(
  'create: publishes no files planted in the memory stage by another user',
  { skip: tmpfs.skip || needsOtherUser.skip },
  async (t) => {
    const here = world(t, { trustedUids: [0, stranger] })
    const { run, root, secret } = here
    const client = createClient({
      ...{ runDirectory: run, checkpointDirectory: root, dialect: 'descriptor' },
      ...{ trustedUids: [0, stranger], memoryStage: { directory: path.join(tmpfs.directory, 'stage') } },
    })
    const { order } = await hostile(t, run)
    for (const plant of Object.keys(plants)) {
      const call = rejection(client.createCheckpoint('vm1', { memoryBytes: 1 }))
      await order({ plant, secret })
      t.match(await call, { code: 'ERR_CHECKPOINT_FAILED', vmState: 'running' }, plant)
      assertNothingEscaped(t, here, plant)
      t.strictSame([...tree(root), ...tree(tmpfs.directory)], ['stage/'], `${plant}: no files are left`)
    }
  },
)

t.test(
  'suspend: planted files do not escape after bhyve has exited',
  { ...needsOtherUser, timeout: 300_000 },
  async (t) => {
    for (const plant of Object.keys(plants)) {
      const here = world(t, { trustedUids: [0, stranger] })
      const { order } = await hostile(t, here.run)
      const call = rejection(here.client.suspend('vm1'))
      await order({ plant, secret: here.secret, end: 'exit' })
      t.match(await call, { code: 'ERR_SUSPEND_FAILED', vmState: 'off' }, plant)
      assertNothingEscaped(t, here, plant)
      t.match(
        await here.client.listCheckpoints('vm1'),
        [{ state: 'damaged' }],
        `${plant}: the files are kept`,
      )
      const left = tree(here.root).filter(
        (entry) => !/^vm1\/([^/]*\.ckp[^/]*|[^/]*\.ckp\.rest\/.*|\.staging\/)?$/.test(entry),
      )
      t.strictSame(left, [], plant)
      t.equal((await here.client.destroyAll('vm1')).length, 1)
      t.strictSame(tree(here.root), [])
    }
  },
)

t.test('create: removes other planted files', { ...needsOtherUser, timeout: 300_000 }, async (t) => {
  const here = world(t, { trustedUids: [0, stranger] })
  const { run, root, client } = here
  const { order } = await hostile(t, run)
  for (const plant of [...Object.keys(litter), 'folders that fill by themselves']) {
    for (const good of plant.startsWith('a hundred thousand') ? [true] : [true, false]) {
      const call = client.createCheckpoint('vm1').catch((error: unknown) => error)
      await order({ plant, good })
      const expected = good ? { name: 'checkpoint', memoryBytes: 8192 } : { code: 'ERR_CHECKPOINT_FAILED' }
      t.match(await call, expected, plant)
      t.strictSame(
        checkpointFiles(path.join(root, 'vm1')),
        ['', '.kern', '.manifest', '.meta'].map((ending) => `checkpoint.ckp${ending}`),
        `${plant}: no other files are left`,
      )
      for (const file of checkpointFiles(path.join(root, 'vm1')))
        t.equal(fs.statSync(path.join(root, 'vm1', file)).nlink, 1)
    }
  }
  t.match(await client.verifyCheckpoint('vm1', 'checkpoint', { depth: 'content' }), { ok: true })
})

t.test('create: a bhyve of another user cannot leave its inbox', needsOtherUser, async (t) => {
  const { run, client } = world(t, { trustedUids: [0, stranger] })
  const { order } = await hostile(t, run)
  const call = client.createCheckpoint('vm1')
  await order({ plant: 'the way up', good: true })
  t.match(await call, { name: 'checkpoint' })
})

t.test('create: a timeout bounds the scan of RAM that is one huge hole', async (t) => {
  const { run, root, client } = world(t, { dialect: 'path' })
  const { serve } = serveByHand(t, run)
  const bytes = 4 * 2 ** 40
  const call = rejection(client.createCheckpoint('vm1', { timeout: 1500 }))
  await serve((inbox) => {
    plants['nothing for ckp']!(inbox, '')
    fs.writeFileSync(path.join(inbox, 'ckp'), '')
    fs.truncateSync(path.join(inbox, 'ckp'), bytes)
    const file = path.join(inbox, 'ckp.meta')
    const metadata = JSON.parse(fs.readFileSync(file, 'utf8')) as { 'basic metadata': { memsize: number } }
    metadata['basic metadata'].memsize = bytes
    fs.writeFileSync(file, JSON.stringify(metadata))
  })
  t.match(await call, { code: 'ERR_TIMEOUT', vm: 'vm1' })
  await client.idle()
  t.strictSame(tree(root), [])
})

t.test('recovery: removes an abandoned stage that another user still fills', needsRoot, async (t) => {
  const directory = path.join(scratch(t), 'vm1')
  const dead = path.join(directory, '.staging/dead')
  fs.mkdirSync(path.join(dead, 'in/mine/deeper'), { recursive: true })
  fs.chmodSync(path.join(directory, '.staging'), 0o700)
  for (const entry of ['in', 'in/mine', 'in/mine/deeper'])
    fs.chownSync(path.join(dead, entry), stranger, stranger)
  // While the other user owns a directory, that user may add files after the directory was read.
  const readDirectory = native.readDirectory.bind(native)
  let reads = 0
  let filled = 0
  native.readDirectory = (descriptor, limit) => {
    const names = readDirectory(descriptor, limit)
    reads++
    if (fs.fstatSync(descriptor).uid === stranger) filled++
    return names
  }
  t.teardown(() => (native.readDirectory = readDirectory))
  t.strictSame(jobs.listCheckpoints(directory, 'vm1'), [])
  t.notOk(fs.existsSync(dead))
  t.ok(reads > 3)
  t.equal(filled, 0, 'no directory is emptied before this process owns it')
})
