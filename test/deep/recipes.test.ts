/** Runs the recipes of docs/portable.md with the programs that they name. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { childEnvironment, checkpointFiles, tree, until } from '../support/index.js'
import { needs } from '../support/programs.js'
import { recipe, RecipeHost } from '../support/recipes.js'
import { startSshServer } from '../support/ssh_server.js'

const MiB = 2 ** 20
const name = 'before-upgrade'
const incomplete = /ends after \d+ bytes, too early\. Nothing was published \(ERR_ARCHIVE_INVALID\)/

/** A host with a checkpoint of vm1. */
async function hostWithCheckpoint(t: Test): Promise<RecipeHost> {
  const host = new RecipeHost(t)
  await host.start({ memoryBytes: 4 * MiB })
  await host.client.createCheckpoint('vm1', { name })
  return host
}

async function succeeds(t: Test, host: RecipeHost, block: string, shell?: string): Promise<void> {
  const { code, stdout, stderr } = await host.run(block, shell)
  t.equal(code, 0, `${block}${stdout}${stderr}`)
}

async function isImported(t: Test, host: RecipeHost, ram: Buffer, checkpoint = name): Promise<void> {
  t.match(await host.client.listCheckpoints('vm1'), [{ name: checkpoint, state: 'complete' }])
  const verified = await host.client.verifyCheckpoint('vm1', checkpoint, { depth: 'content' })
  t.match(verified, { ok: true, depth: 'content' })
  t.ok(host.ram(checkpoint).equals(ram), 'the RAM is the same')
}

/** Exports to a file, imports it again, and breaks both pipes. */
async function throughFile(t: Test, host: RecipeHost, file: string, blocks: [string, string]): Promise<void> {
  const [exporting, importing] = blocks
  const ram = host.ram(name)
  await succeeds(t, host, exporting)
  await host.client.destroyAll('vm1')
  await succeeds(t, host, importing)
  await isImported(t, host, ram)
  await host.client.destroyAll('vm1')
  await fails(t, host, exporting, file)
  const stored = path.join(host.directory, file)
  fs.truncateSync(stored, Math.floor(fs.statSync(stored).size / 2))
  const { code, stderr } = await host.run(importing)
  t.equal(code, 6, stderr)
  t.match(stderr, incomplete)
  t.strictSame(checkpointFiles(path.join(host.checkpointDirectory, 'vm1')), [], 'nothing was published')
}

/** The checkpoint does not exist, so the export fails. */
async function fails(t: Test, host: RecipeHost, block: string, file: string, shell?: string): Promise<void> {
  const stored = path.join(host.directory, file)
  const before = fs.readFileSync(stored)
  const { code, stderr } = await host.run(block, shell)
  t.not(code, 0, 'the pipe fails')
  t.match(stderr, /ERR_CHECKPOINT_NOT_FOUND/)
  t.ok(fs.readFileSync(stored).equals(before), 'the former archive is unchanged')
}

t.test('recipes: zstd', needs('bash', 'zstd'), async (t) => {
  const [exporting = '', importing = ''] = recipe('zstd')
  await throughFile(t, await hostWithCheckpoint(t), 'vm1.tar.zst', [exporting, importing])
})

t.test('recipes: a shell without pipefail', needs('zstd'), async (t) => {
  const [exporting = ''] = recipe('Without pipefail')
  const [, importing = ''] = recipe('zstd')
  const host = await hostWithCheckpoint(t)
  const ram = host.ram(name)
  await succeeds(t, host, exporting, 'sh')
  await host.client.destroyAll('vm1')
  await succeeds(t, host, importing, 'sh')
  await isImported(t, host, ram)
  await host.client.destroyAll('vm1')
  await fails(t, host, exporting, 'vm1.tar.zst', 'sh')
})

t.test('recipes: age encrypts for a key', needs('bash', 'age'), async (t) => {
  const host = await hostWithCheckpoint(t)
  const [keys = '', exporting = '', importing = ''] = recipe('age: encrypted for a key')
  await succeeds(t, host, keys)
  await throughFile(t, host, 'vm1.tar.age', [exporting, importing])
  await succeeds(t, host, 'age-keygen -o other.key')
  await host.client.createCheckpoint('vm1', { name })
  await succeeds(t, host, exporting)
  await host.client.destroyAll('vm1')
  const { code } = await host.run(importing.replace('backup.key', 'other.key'))
  t.equal(code, 6, 'another key decrypts nothing')
  t.strictSame(checkpointFiles(path.join(host.checkpointDirectory, 'vm1')), [])
})

t.test('recipes: restic stores only what changed', needs('bash', 'restic'), async (t) => {
  const host = new RecipeHost(t)
  const disk = path.join(host.directory, 'disk')
  fs.writeFileSync(disk, Buffer.alloc(MiB))
  // The guest writes a number to its RAM again and again.
  await host.start({ memoryBytes: 64 * MiB, disks: [disk] })
  fs.writeFileSync(path.join(host.directory, 'password'), 'secret\n')
  const [init = '', exporting = '', importing = ''] = recipe('restic: only what changed').map((block) =>
    block.replaceAll('/backup', host.directory),
  )
  const settings = init.slice(0, init.indexOf('\n') + 1)
  await succeeds(t, host, init)
  const added: number[] = []
  const images: Buffer[] = []
  for (let night = 0; night < 2; night++) {
    await host.client.createCheckpoint('vm1', { name: 'nightly' })
    images.push(host.ram('nightly'))
    const backup = settings + exporting.replace('restic backup', 'restic backup --json')
    const { code, stdout, stderr } = await host.run(backup)
    t.equal(code, 0, stderr)
    const summary = stdout.split('\n').find((line) => line.includes('"summary"')) ?? '{}'
    added.push((JSON.parse(summary) as { data_added: number }).data_added)
  }
  const [first, second] = images
  t.notOk(first!.equals(second!), 'pages have changed')
  t.ok(added[0]! > 30 * MiB, `the first backup adds the RAM without its zeros: ${added[0]} bytes`)
  // One changed page can change a piece of restic's largest size, 8 MiB.
  t.ok(added[1]! < added[0]! / 2, `the second backup adds little: ${added[1]} bytes`)
  await host.client.destroyAll('vm1')
  await succeeds(t, host, settings + importing)
  await isImported(t, host, second!, 'nightly')
  await succeeds(t, host, 'bhyve-checkpoint export vm1 nightly >vm1.tar')
  await host.client.destroyAll('vm1')
  const broken = exporting.replace('bhyve-checkpoint export vm1 nightly', '(head -c 1000000 vm1.tar; exit 1)')
  t.not((await host.run(settings + broken)).code, 0, 'the pipe fails if the export fails')
  const { code, stderr } = await host.run(settings + importing)
  t.equal(code, 6, 'what restic has stored of it is refused')
  t.match(stderr, incomplete)
  t.strictSame(checkpointFiles(path.join(host.checkpointDirectory, 'vm1')), [])
})

const needsSsh = needs(
  { program: 'ssh', from: 'openssh-client' },
  { program: 'sshd', from: 'openssh-server' },
)

/** Two hosts. `ssh host2` of the first one connects to the second one. */
async function twoHosts(t: Test) {
  const [here, there] = [await hostWithCheckpoint(t), new RecipeHost(t)]
  const { sshd, clientConfiguration } = await startSshServer(t, there)
  const ssh = execFileSync('sh', ['-c', 'command -v ssh'], { encoding: 'utf8' }).trim()
  here.install('ssh', `exec '${ssh}' -F '${clientConfiguration}' "$@"`)
  return { here, there, sshd }
}

t.test('recipes: ssh in both directions', needsSsh, async (t) => {
  const { here, there } = await twoHosts(t)
  const ram = here.ram(name)
  const [sending = '', receiving = ''] = recipe('ssh: from host to host')
  await succeeds(t, here, sending, 'sh')
  await isImported(t, there, ram)
  await here.client.destroyAll('vm1')
  await succeeds(t, here, receiving, 'sh')
  await isImported(t, here, ram)
  await here.client.destroyAll('vm1')
  await there.client.destroyAll('vm1')
  for (const block of [sending, receiving]) {
    const { code, stderr } = await here.run(block, 'sh')
    t.equal(code, 6, 'the status is that of the import, which got an empty archive')
    t.match(stderr, /ERR_CHECKPOINT_NOT_FOUND[^]*ERR_ARCHIVE_INVALID|ERR_ARCHIVE_INVALID/)
  }
  for (const { checkpointDirectory } of [here, there])
    t.strictSame(checkpointFiles(path.join(checkpointDirectory, 'vm1')), [])
})

/** The processes of sshd for its connections. */
function connectionsOf(sshd: ChildProcess): number[] {
  const children = fs.readFileSync(`/proc/${sshd.pid}/task/${sshd.pid}/children`, 'utf8')
  return children.trim().split(' ').filter(Boolean).map(Number)
}

t.test(
  'recipes: a broken connection publishes nothing',
  { skip: needsSsh.skip || (process.platform !== 'linux' && 'needs /proc') },
  async (t) => {
    const { here, there, sshd } = await twoHosts(t)
    const archive = path.join(here.directory, 'vm1.tar')
    await succeeds(t, here, `bhyve-checkpoint export vm1 ${name} >vm1.tar`, 'sh')
    const half = fs.readFileSync(archive).subarray(0, fs.statSync(archive).size / 2)
    const ssh = spawn(path.join(here.bin, 'ssh'), ['host2', 'bhyve-checkpoint', 'import', 'vm1'], {
      env: childEnvironment({ PATH: here.searchPath }),
      stdio: ['pipe', 'ignore', 'ignore'],
    })
    ssh.stdin.on('error', () => undefined)
    ssh.stdin.write(half)
    const arriving = () => tree(there.checkpointDirectory).some((file) => file.endsWith(`${name}.ckp`))
    await until(arriving, 'the RAM arrives')
    for (const pid of connectionsOf(sshd)) process.kill(pid, 'SIGKILL')
    const [status] = (await once(ssh, 'exit')) as [number]
    t.equal(status, 255, 'ssh reports the broken connection')
    // The import removes the directory that it has made.
    const directory = path.join(there.checkpointDirectory, 'vm1')
    await until(() => !fs.existsSync(directory), 'the import removes what has arrived')
    t.strictSame(await there.client.listCheckpoints('vm1'), [], 'nothing was published')
  },
)
