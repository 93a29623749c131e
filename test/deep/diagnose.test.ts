/** What `diagnose` reports about directories, VMs and what waits, and that it changes nothing. */
import { execFile } from 'node:child_process'
import fs from 'node:fs'
import net from 'node:net'
import path from 'node:path'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { cbsdLayout, createClient, type Finding } from 'bhyve-checkpoint'
import { SimulatedBhyve, SimulatedFleet } from 'bhyve-checkpoint/simulator'
import { PeerMemory } from '../../dist/bhyve/peer_memory.js'
import { createClientIn } from '../../dist/client/client.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { bootIdentity } from '../../dist/store/staging/boot_identity.js'
import {
  checkpointDirectoryFindings,
  runDirectoryFindings,
} from '../../dist/diagnosis/findings/directory_findings.js'
import { spaceFindings, storeFindings } from '../../dist/diagnosis/findings/store_findings.js'
import { mounted } from '../support/image_world.js'
import { childEnvironment, inlinePool, rejection, scratch, until } from '../support/index.js'
import { putSet } from '../support/sets.js'

interface World {
  run: string
  root: string
  client: ReturnType<typeof createClient>
  /** The findings with this code. */
  found: (code: string) => Promise<Finding[]>
}

function world(t: Test): World {
  const [run, root] = [scratch(t), scratch(t)]
  const client = createClient({ runDirectory: run, checkpointDirectory: root })
  const found = async (code: string): Promise<Finding[]> =>
    (await client.diagnose()).filter((finding) => finding.code === code)
  return { run, root, client, found }
}

async function start(
  t: Test,
  runDirectory: string,
  vm = 'vm1',
  dialect: 'descriptor' | 'struct' = 'descriptor',
) {
  const bhyve = await SimulatedBhyve.start({ vm, memoryBytes: 65536, runDirectory, dialect })
  t.teardown(() => bhyve.stop())
  return bhyve
}

/** Names, times, owners and contents of everything below a directory. */
function snapshot(directory: string): unknown[] {
  const names = ['', ...fs.readdirSync(directory, { recursive: true, encoding: 'utf8' }).sort()]
  return names.map((name) => {
    const status = fs.lstatSync(path.join(directory, name), { bigint: true })
    return [
      name,
      status.ino,
      status.mode,
      status.uid,
      status.nlink,
      status.size,
      status.mtimeNs,
      status.ctimeNs,
    ]
  })
}

/** A stage whose owner is dead. `files`: its records. */
function putStage(root: string, vm: string, id: string, files: Record<string, unknown>): string {
  const stage = path.join(root, vm, '.staging', id)
  fs.mkdirSync(path.join(stage, 'in'), { recursive: true, mode: 0o700 })
  for (const [name, content] of Object.entries(files))
    fs.writeFileSync(path.join(stage, name), content === '' ? '' : JSON.stringify(content))
  return stage
}

const boot = bootIdentity()
const intent = { vm: 'vm1', name: 'suspend', ifExists: 'replace', poweroff: true, boot }

t.test('diagnose: reports run directories in which sockets can be replaced', async (t) => {
  const { run, found } = world(t)
  t.match(await found('run-directory-usable'), [{ level: 'ok' }])
  fs.chmodSync(run, 0o777)
  t.match(await found('run-directory-unsafe'), [{ level: 'problem', advice: /chmod o-w/ }])
  fs.chmodSync(run, 0o770)
  t.match(await found('run-directory-unsafe'), [{ level: 'warning', advice: /chmod g-w/ }])
  fs.chmodSync(run, 0o1777)
  t.match(await found('run-directory-usable'), [{ level: 'ok' }], 'with the sticky bit')
  const ofOthers = createClient({ runDirectory: '/proc/1', checkpointDirectory: scratch(t) })
  t.match((await ofOthers.diagnose()).map(({ code }) => code).includes('run-directory-usable'), true)
  const link = path.join(scratch(t), 'link')
  fs.symlinkSync(run, link)
  const linked = await createClient({ runDirectory: link, checkpointDirectory: scratch(t) }).diagnose()
  t.match(linked.find(({ code }) => code === 'run-directory-unsafe')?.message, /symbolic link/)
  const file = await createClient({ runDirectory: '/etc/passwd', checkpointDirectory: scratch(t) }).diagnose()
  t.match(file.find(({ code }) => code === 'run-directory-unsafe')?.message, /not a directory/)
  const none = await createClient({ runDirectory: `${run}/none`, checkpointDirectory: scratch(t) }).diagnose()
  t.match(
    none.find(({ code }) => code === 'run-directory-missing'),
    { level: 'warning' },
  )
})

t.test(
  'diagnose: reports checkpoint directories that others can enter, or that cannot be used',
  async (t) => {
    const { root, run, found } = world(t)
    fs.chmodSync(root, 0o755)
    t.match(await found('checkpoint-directory-open'), [
      { level: 'warning', advice: `Run chmod 700 '${root}'` },
    ])
    fs.mkdirSync(path.join(root, 'vm1'))
    fs.chmodSync(path.join(root, 'vm1'), 0o755)
    t.match(await found('checkpoint-directory-open'), [
      { level: 'warning' },
      { level: 'problem', vm: 'vm1', message: /every user can reach the checkpoints/ },
    ])
    fs.chmodSync(root, 0o777)
    t.match(await found('checkpoint-directory-open'), [{ level: 'problem' }, { vm: 'vm1' }])
    fs.chmodSync(path.join(root, 'vm1'), 0o700)
    fs.chmodSync(root, 0o750)
    t.match(await found('checkpoint-directory-open'), [{ level: 'warning' }])
    fs.chmodSync(root, 0o700)
    t.match(await found('checkpoint-directory-usable'), [{ level: 'ok' }])
    const of = async (checkpointDirectory: string): Promise<readonly Finding[]> =>
      createClient({ runDirectory: run, checkpointDirectory }).diagnose()
    t.match(
      (await of(`${root}/a/b`)).find(({ code }) => code === 'checkpoint-directory-missing'),
      { level: 'ok' },
    )
    t.match(
      (await of('/etc/passwd').catch(() => [])).find(
        ({ code }) => code === 'checkpoint-directory-unusable',
      ) ?? {
        level: 'problem',
      },
      { level: 'problem' },
    )
  },
)

t.test('diagnose: reports the state and the space of each VM', async (t) => {
  const { run, root, client, found } = world(t)
  const bhyve = await start(t, run)
  t.match(await found('space-unknown'), [{ level: 'ok', vm: 'vm1' }])
  await client.createCheckpoint('vm1')
  t.match(await found('space-enough'), [{ level: 'ok', vm: 'vm1' }])
  t.match(await found('vm-state'), [{ message: `the VM runs as process ${String(bhyve.pid)}` }])
  await client.pause('vm1')
  t.match(await found('vm-paused'), [{ level: 'warning', vm: 'vm1', advice: /resume vm1/ }])
  await client.resume('vm1')
  fs.chmodSync(run, 0o777)
  t.match(await found('vm-untrusted'), [{ level: 'problem', vm: 'vm1', advice: /chmod o-w/ }])
  fs.chmodSync(run, 0o700)
  await bhyve.stop()
  t.match(await found('vm-state'), [{ message: /ended/ }])
  fs.mkdirSync(path.join(run, 'checkpoint'))
  await start(t, run, 'vm2', 'struct')
  t.match((await found('vm-state')).at(-1), { vm: 'vm2', message: /without harm/ })
  const long = 'd'.repeat(240)
  const deep = createClient({ runDirectory: run, checkpointDirectory: `${root}/${long}` })
  t.match(
    (await deep.diagnose()).find(({ code }) => code === 'vm-path-too-long'),
    { level: 'problem' },
  )
})

t.test('diagnose: reports VMs of the kernel without a socket, and a disk without room', async (t) => {
  const { run, root } = world(t)
  const vmmDirectory = scratch(t)
  fs.writeFileSync(path.join(vmmDirectory, 'vm9'), '')
  await start(t, run)
  putSet(path.join(root, 'vm1'), 'huge')
  const environment = { ...hostEnvironment, vmmDirectory, peers: new PeerMemory() }
  const client = createClientIn(environment, { runDirectory: run, checkpointDirectory: root })
  const findings = await client.diagnose()
  t.match(
    findings.filter(({ code }) => code === 'vm-without-socket'),
    [{ level: 'problem', vm: 'vm9' }],
  )
})

t.test('diagnose: adds no connection to those that wait for a paused VM', async (t) => {
  const { run, root } = world(t)
  await start(t, run)
  const socket = path.join(run, 'vm1')
  const waitingConnections = () => Promise.resolve(new Map([[socket, 1]]))
  const facts = { ...hostEnvironment.facts, waitingConnections }
  const peers = new PeerMemory()
  const options = { runDirectory: run, checkpointDirectory: root }
  const findings = await createClientIn({ ...hostEnvironment, facts, peers }, options).diagnose()
  t.match(
    findings.filter(({ code }) => code === 'vm-state'),
    [{ level: 'warning', vm: 'vm1', message: /paused, busy or not visible/, advice: /--pid/ }],
  )
  const [machine] = await createClientIn({ ...hostEnvironment, peers }, options).listVirtualMachines({
    connect: false,
  })
  t.match(machine, { state: 'unknown' }, 'it did not connect')
})

t.test('diagnose: a VM whose backlog is full is not fine', async (t) => {
  const { run, root } = world(t)
  const bhyve = await start(t, run)
  process.kill(bhyve.pid, 'SIGSTOP')
  const options = { runDirectory: run, checkpointDirectory: root }
  const diagnosed = async (): Promise<Finding[]> => {
    const client = createClientIn({ ...hostEnvironment, peers: new PeerMemory() }, options)
    return (await client.diagnose()).filter(({ vm }) => vm === 'vm1')
  }
  t.match(await diagnosed(), [{ code: 'vm-paused' }])
  for (let runs = 0; runs < 12; runs++) await diagnosed()
  t.match(await diagnosed(), [{ code: 'vm-state', level: 'warning', advice: /resume vm1 --pid/ }])
})

t.test('diagnose: reports what dead processes have left, and recovers nothing', async (t) => {
  const { root, found } = world(t)
  const writer = { pid: process.pid, startedAt: undefined, uid: 0, dialect: 'descriptor' }
  putStage(root, 'vm1', 'left', { intent })
  putStage(root, 'vm2', 'writes', { intent, peer: writer })
  putStage(root, 'vm3', 'held', { live: { ...intent, poweroff: false }, peer: writer, hold: '' })
  putStage(root, 'vm4', 'x.ready', {})
  const before = snapshot(root)
  t.match(await found('recovery-waiting'), [
    { vm: 'vm1', level: 'warning', message: /left.*only state of the VM/ },
    { vm: 'vm2', message: /bhyve writes into/ },
    { vm: 'vm4', message: /x\.ready/ },
  ])
  t.match(await found('vm-held'), [{ vm: 'vm3', level: 'problem' }])
  t.strictSame(snapshot(root), before)
})

t.test('diagnose: reports unfinished rollbacks and snapshots that wait to be removed', async (t) => {
  const { root, found } = world(t)
  const staging = path.join(root, 'vm1', '.staging')
  fs.mkdirSync(staging, { recursive: true, mode: 0o700 })
  fs.writeFileSync(path.join(staging, 'disks.rollback'), 'torn')
  const id = '11111111-2222-3333-4444-555555555555'
  fs.writeFileSync(
    path.join(staging, `${id}.snapshots`),
    JSON.stringify({ vm: 'vm1', name: 'a', id, disks: [{ kind: 'file', disks: [] }] }),
  )
  t.match(await found('rollback-unfinished'), [{ vm: 'vm1', level: 'problem', advice: /remove that file/ }])
  t.match(await found('snapshots-waiting'), [{ vm: 'vm1', level: 'warning' }])
})

t.test('diagnose: reports suspended, damaged and unconfirmed states, and kept files', async (t) => {
  const { run, root, client, found } = world(t)
  const at = '2026-01-02T03:04:05.000Z'
  putSet(path.join(root, 'vm1'), 'suspend', { manifest: { poweredOff: true } })
  putSet(path.join(root, 'vm2'), 'suspend', {
    vm: 'vm2',
    manifest: { poweredOff: true, restoredAt: at, restores: [{ at, again: false }] },
  })
  putSet(path.join(root, 'vm3'), 'half', { vm: 'vm3' })
  fs.truncateSync(path.join(root, 'vm3/half.ckp.meta'), 10)
  fs.mkdirSync(path.join(root, 'vm3/half.ckp.rest'))
  t.match(await found('state-suspended'), [{ vm: 'vm1', level: 'ok', advice: /Restore/ }])
  t.match(await found('restore-unconfirmed'), [{ vm: 'vm2', level: 'warning' }])
  t.match(await found('checkpoint-damaged'), [{ vm: 'vm3', level: 'warning' }])
  t.match(await found('files-kept'), [{ vm: 'vm3', message: /half\.ckp\.rest/ }])
  await start(t, run)
  t.match(await found('state-suspended'), [{ vm: 'vm1', level: 'warning', message: /runs although/ }])
  t.match(await client.suspendedCheckpoint('vm1'), { name: 'suspend' })
})

t.test('diagnose: a lock that is held is reported, and does not make the call wait', async (t) => {
  const { root, found } = world(t)
  const staging = path.join(root, 'vm1', '.staging')
  fs.mkdirSync(staging, { recursive: true, mode: 0o700 })
  const { Directory } = await import('../../dist/fs/directory.js')
  using held = Directory.openPath(staging)
  t.ok(held.lock('exclusive'))
  t.match(await found('store-busy'), [{ vm: 'vm1', level: 'warning' }])
})

t.test('diagnose and planCheckpoint: change no name, time, owner or content', async (t) => {
  const { run, root, client } = world(t)
  await start(t, run)
  await client.createCheckpoint('vm1', { name: 'a' })
  putStage(root, 'vm1', 'left', { intent })
  const before = [snapshot(run), snapshot(root)]
  await client.diagnose()
  await client.planCheckpoint('vm1', { name: 'a' })
  await client.planCheckpoint('vm1', { poweroff: true })
  await client.planCheckpoint('vm2')
  t.strictSame([snapshot(run), snapshot(root)], before)
})

t.test('diagnose and planCheckpoint: never connect to a socket of dialect struct', async (t) => {
  const { run, client } = world(t)
  let connections = 0
  const server = net.createServer(() => connections++)
  fs.mkdirSync(path.join(run, 'checkpoint'))
  await new Promise<void>((resolve) => server.listen(path.join(run, 'checkpoint/vm1'), resolve))
  t.teardown(() => void server.close())
  t.match(
    (await client.diagnose()).filter(({ code }) => code === 'vm-state'),
    [{ vm: 'vm1' }],
  )
  const { blockers, warnings } = await client.planCheckpoint('vm1')
  t.strictSame(blockers, [])
  t.ok(warnings.some(({ code }) => code === 'state-unknown'))
  // A connection made before this one would have been accepted before it.
  const ours = net.connect(path.join(run, 'checkpoint/vm1'))
  t.teardown(() => ours.destroy())
  await until(() => connections > 0, 'our own connection')
  t.equal(connections, 1)
})

t.test('diagnose: a layout of another tool has a directory for each VM', async (t) => {
  const [run, workdir] = [scratch(t), scratch(t)]
  putSet(path.join(workdir, 'jails-system/vm1/checkpoints'), 'a')
  fs.chmodSync(path.join(workdir, 'jails-system/vm1/checkpoints'), 0o755)
  const client = createClient({ runDirectory: run, checkpointDirectory: cbsdLayout({ workdir }) })
  const findings = await client.diagnose()
  t.match(
    findings.filter(({ code }) => code === 'checkpoint-directory-open'),
    [{ vm: 'vm1', level: 'problem' }],
  )
  t.ok(findings.some(({ code, vm }) => code === 'file-system-suitable' && vm === undefined))
})

t.test('diagnose: reports a hundred VMs with few inspections of the stores', async (t) => {
  const [run, root] = [scratch(t), scratch(t)]
  const vms = Array.from({ length: 100 }, (_, index) => `vm${String(index)}`)
  const fleet = await SimulatedFleet.start({ vms, memoryBytes: 65536, runDirectory: run })
  t.teardown(() => fleet.stop())
  const jobs: string[] = []
  const pool = inlinePool((name) => void jobs.push(name))
  const environment = { ...hostEnvironment, pool: () => pool, peers: new PeerMemory() }
  const client = createClientIn(environment, { runDirectory: run, checkpointDirectory: root })
  const findings = await client.diagnose()
  t.equal(findings.filter(({ code }) => code === 'vm-state').length, 100)
  t.ok(jobs.length < 15, jobs.join(' '))
})

t.test('diagnose: a disk without room, and a store of another user', async (t) => {
  const [run, root] = [scratch(t), scratch(t)]
  const directory = {
    path: root,
    kind: 'directory',
    existing: root,
    isWritable: true,
    freeBytes: 2 ** 30,
  } as const
  const report = { vm: 'vm1', directory, checkpoints: [], kept: [], memoryBytes: 2 ** 30 }
  t.match(spaceFindings(report, 0), [{ level: 'problem', code: 'space-short' }])
  const small = { ...report, memoryBytes: 2 ** 20 }
  t.match(spaceFindings(small, 0), [{ level: 'ok', code: 'space-enough' }])
  t.match(spaceFindings(small, 2 ** 30), [{ code: 'space-short' }], 'other checkpoints are being written')
  const { freeBytes: _, ...unreadable } = directory
  t.match(spaceFindings({ ...small, directory: unreadable }, 0), [
    { level: 'warning', code: 'space-unknown' },
  ])
  const staging = {
    path: root,
    uid: 4711,
    stages: [],
    unfinished: [],
    snapshotRecords: [],
    isRestoring: false,
  }
  t.match(storeFindings({ ...report, staging }, false), [{ level: 'problem', code: 'store-unreadable' }])
  fs.symlinkSync('/', path.join(root, 'vm1'))
  await start(t, run)
  const client = createClient({ runDirectory: run, checkpointDirectory: root })
  t.match(
    (await client.diagnose()).find(({ code }) => code === 'store-unreadable'),
    { vm: 'vm1' },
    'a link',
  )
})

t.test('diagnose: directories of others, and one that is no directory', async (t) => {
  const path = '/a'
  const base = { path, existing: '/', isWritable: true, uid: 4711, mode: 0o700 }
  t.match(runDirectoryFindings({ ...base, kind: 'directory' }, [0]), [{ advice: "Run chown root '/a'" }])
  t.match(runDirectoryFindings({ ...base, kind: 'directory' }, [0, 4711]), [{ level: 'ok' }])
  t.match(runDirectoryFindings({ ...base, kind: 'other', failure: 'EACCES' }, []), [{ message: /EACCES/ }])
  t.match(checkpointDirectoryFindings({ ...base, kind: 'other' }, 'directories', []), [
    { level: 'problem', code: 'checkpoint-directory-unusable', message: /not a directory/ },
  ])
  const foreign = { ...base, kind: 'directory' as const, uid: 4711, mode: 0o700 }
  t.match(checkpointDirectoryFindings(foreign, 'directories', []), [
    { level: 'problem', code: 'checkpoint-directory-open', message: /uid 4711/ },
  ])
  t.match(checkpointDirectoryFindings(foreign, 'directories', [4711]), [{ level: 'ok' }])
  t.match(checkpointDirectoryFindings({ ...base, kind: 'missing', isWritable: false }, 'directories', []), [
    { level: 'problem', message: /cannot write in '\/'/ },
  ])
})

const tmpfs = mounted(t, 'tmpfs', 1024 * 1024)

t.test('diagnose: reports whether a memory stage can be used', { skip: tmpfs.skip }, async (t) => {
  const [runDirectory, checkpointDirectory] = [scratch(t), scratch(t)]
  const found = async (directory?: string): Promise<Finding[]> => {
    const memoryStage = directory === undefined ? undefined : { directory }
    const client = createClient({ runDirectory, checkpointDirectory, memoryStage })
    return (await client.diagnose()).filter(({ code }) => code.startsWith('memory-stage-'))
  }
  t.strictSame(await found(), [], 'nothing without the option')
  const stage = path.join(tmpfs.directory, 'stage')
  const usable = {
    level: 'ok',
    code: 'memory-stage-usable',
    message: `the memory stage '${stage}' is on a tmpfs`,
  }
  t.match(await found(stage), [usable], 'the first checkpoint creates it')
  t.notOk(fs.existsSync(stage), 'nothing was created')
  fs.mkdirSync(stage, { mode: 0o700 })
  t.match(await found(stage), [usable])
  t.strictSame(fs.readdirSync(stage), [])
  const unusable = async (directory: string, ...texts: RegExp[]): Promise<void> => {
    const [finding] = await found(directory)
    t.match(finding, { level: 'problem', code: 'memory-stage-unusable', message: texts[0], advice: texts[1] })
    const client = createClient({ runDirectory, checkpointDirectory, memoryStage: { directory } })
    const bhyve = await start(t, runDirectory)
    const error = await rejection(client.createCheckpoint('vm1', { memoryBytes: 65536 }))
    t.ok(error instanceof Error && error.message.includes(finding?.message.split(': ').at(-1) ?? '?'))
    await bhyve.stop()
  }
  fs.chmodSync(stage, 0o770)
  await unusable(stage, /must belong to the user that this program runs as, and no other user/, /mode 0700/)
  fs.chmodSync(stage, 0o700)
  fs.chownSync(stage, 65534, 65534)
  await unusable(stage, /must belong to the user/, /your uid/)
  await unusable(scratch(t), /is not on a tmpfs$/, /^Mount one there/)
  await unusable(path.join(scratch(t), 'missing'), /missing' is not on a tmpfs$/, /^Mount one there/)
  const none = path.join(tmpfs.directory, 'none/stage')
  await unusable(
    none,
    /^The memory stage '.*stage' cannot be created, because '.*none' does not exist$/,
    /^Create it on a tmpfs/,
  )
  fs.symlinkSync(scratch(t), path.join(tmpfs.directory, 'link'))
  await unusable(
    path.join(tmpfs.directory, 'link'),
    /cannot be used: .* failed with E(LOOP|NOTDIR)$/,
    /^Create it/,
  )
})

t.test('diagnose: works without the addon, and reports a limited runtime', async (t) => {
  const [run, root] = [scratch(t), scratch(t)]
  const options = { runDirectory: run, checkpointDirectory: root }
  const limited = await createClientIn({ ...hostEnvironment, runtime: 'bun' }, options).diagnose()
  t.match(
    limited.find(({ code }) => code === 'runtime-limited'),
    { level: 'warning', message: /Bun/ },
  )
  const script = `import { createClient } from 'bhyve-checkpoint'
    console.log(JSON.stringify(await createClient().diagnose()))`
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '--eval', script], {
    env: childEnvironment({ BHYVE_CHECKPOINT_ADDON: '/nonexistent' }),
    cwd: import.meta.dirname,
  })
  t.match(JSON.parse(stdout), [
    { level: 'problem', code: 'addon-unavailable', advice: /^Build the addon: node/ },
    { code: 'simulator-host' },
  ])
})
