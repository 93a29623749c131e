/** Tests of a dead manager's live checkpoint, which recovery keeps or removes depending on its bhyve. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { isFailure, loadNative } from '../../../dist/base/native.js'
import { Directory } from '../../../dist/fs/directory.js'
import { childEnvironment, scratch, tree, until } from '../../support/index.js'
import { putSet } from '../../support/sets.js'
import { nobody, MadeStage, ram, store, list } from '../../support/stages.js'

const native = loadNative()

/** Starts a client in another process, which the test can kill. */
function startCreating(t: Test, bhyve: SimulatedBhyve, root: string, hold: string): ChildProcess {
  const script = fileURLToPath(new URL('../../support/suspend.mjs', import.meta.url))
  const options = JSON.stringify({ poweroff: false, name: 'live' })
  const child = spawn(process.execPath, [script, bhyve.runDirectory, root, hold, options], {
    env: childEnvironment(),
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  t.teardown(() => child.kill('SIGKILL'))
  return child
}

async function killAt(child: ChildProcess, phase: string): Promise<void> {
  let output = ''
  child.stdout!.on('data', (chunk) => (output += String(chunk)))
  await until(() => output.split('\n').includes(phase), `the manager has reached the phase ${phase}`)
  child.kill('SIGKILL')
  await once(child, 'exit')
}

t.test('recovery: keeps the live checkpoint of a bhyve that died with its manager', async (t) => {
  const bhyve = await SimulatedBhyve.start({
    vm: 'vm1',
    memoryBytes: 8 << 20,
    dialect: 'reply',
    writeRate: 8 << 20,
  })
  t.teardown(() => bhyve.stop())
  const root = scratch(t)
  const directory = path.join(root, 'vm1')
  putSet(directory, 'live')
  const older = fs.readFileSync(path.join(directory, 'live.ckp'))
  await killAt(startCreating(t, bhyve, root, 'saving'), 'saving')
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: root })
  t.match(await client.listCheckpoints('vm1'), [{ name: 'live' }], 'bhyve still writes the new one')
  t.match(await bhyve.exited, { signal: 'SIGPIPE' })
  const listed = await client.listCheckpoints('vm1')
  t.match(listed, [
    { name: 'live', state: 'complete' },
    { name: /^live-/, state: 'complete', poweredOff: false },
  ])
  t.ok(fs.readFileSync(path.join(directory, 'live.ckp')).equals(older), 'the older checkpoint is unchanged')
  t.equal(await client.suspendedCheckpoint('vm1'), undefined, 'a live checkpoint is not a suspended state')
  const { removed } = await client.pruneCheckpoints('vm1', { keepLast: 1 })
  t.strictSame(removed, ['live'])
})

t.test('recovery: removes the live stage of a bhyve that has finished a later request', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 1 << 20, dialect: 'descriptor' })
  t.teardown(() => bhyve.stop())
  const root = scratch(t)
  const directory = path.join(root, 'vm1')
  await killAt(startCreating(t, bhyve, root, 'checking'), 'checking')
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory: root })
  t.strictSame(await client.listCheckpoints('vm1'), [])
  await client.createCheckpoint('vm1', { name: 'later' })
  t.match(await client.listCheckpoints('vm1'), [{ name: 'later' }])
  t.strictSame(tree(path.join(directory, '.staging')), [])
})

t.test('recovery: keeps, leaves or removes a live stage depending on its bhyve', async (t) => {
  const directory = store(t)
  const status = native.processStatus(process.pid)
  if (isFailure(status)) return t.fail('the status of this process cannot be read')
  const alive = { ...nobody, pid: process.pid, startedAt: status.startedAt }
  const long = new Date(Date.now() - 3_600_000)
  const age = (stage: MadeStage): void => {
    for (const file of fs.readdirSync(stage.file('in'))) fs.utimesSync(stage.file(`in/${file}`), long, long)
  }

  const writing = new MadeStage(directory, { poweroff: false, writer: alive })
  writing.release()
  list(directory)
  t.ok(fs.existsSync(writing.path), 'bhyve may not have replied yet')
  age(writing)
  t.strictSame(list(directory), [])
  t.notOk(fs.existsSync(writing.path), 'bhyve still runs long after its last write')

  const partial = new MadeStage(directory, { poweroff: false })
  fs.truncateSync(partial.file('in/ckp.meta'), 10)
  partial.release()
  t.strictSame(list(directory), [], 'an incomplete checkpoint is not kept')

  const rebooted = new MadeStage(directory, { poweroff: false })
  rebooted.reboot()
  t.strictSame(list(directory), [], 'after a reboot nothing proves the content')
  t.strictSame(tree(path.join(directory, '.staging')), [])

  const linked = new MadeStage(directory, { poweroff: false })
  fs.linkSync(linked.file('in/ckp'), path.join(directory, 'backup'))
  linked.release()
  t.match(list(directory), [{ state: 'complete', poweredOff: false }], 'a file with a second name is copied')
})

/** Moves the inbox into a directory outside of the stage, as in a memory stage. */
function moveInbox(stage: MadeStage, memory: string): void {
  fs.mkdirSync(memory)
  fs.cpSync(stage.file('in'), path.join(memory, 'in'), { recursive: true })
  fs.rmSync(stage.file('in'), { recursive: true })
  using directory = Directory.openPath(memory)
  const { identity } = directory.ownStatus()
  fs.writeFileSync(stage.file('memory'), JSON.stringify({ path: memory, identity }))
}

t.test('recovery: does not keep an unfinished copy when the memory stage is gone', (t) => {
  const directory = store(t)
  const memory = path.join(scratch(t), 'entry')
  const stage = new MadeStage(directory, { poweroff: false, name: 'live' })
  moveInbox(stage, memory)
  // The copy that the owner had begun.
  for (const [from, to] of [
    ['ckp.kern', 'live.ckp.kern'],
    ['ckp.meta', 'live.ckp.meta'],
  ] as const)
    fs.copyFileSync(path.join(memory, 'in', from), stage.file(to))
  fs.writeFileSync(stage.file('live.ckp'), Buffer.alloc(ram.length))
  stage.release()
  fs.rmSync(memory, { recursive: true })
  // The recovery that removes the stage dies after it has removed the record.
  const unlinkAt = native.unlinkAt.bind(native)
  native.unlinkAt = (parent, name) => {
    const result = unlinkAt(parent, name)
    if (name === 'memory') throw new Error('killed')
    return result
  }
  try {
    t.strictSame(list(directory), [], 'the RAM of the copy is not complete')
  } finally {
    native.unlinkAt = unlinkAt
  }
  t.ok(fs.existsSync(stage.file('live.ckp')), 'the removal has begun')
  t.strictSame(list(directory), [], 'the stage without a record is not kept either')
  t.strictSame(tree(path.join(directory, '.staging')), [])
  t.end()
})
