/** Runs every code block of the documentation, with other socket and checkpoint directories. */
import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve, simulatedBhyve } from 'bhyve-checkpoint/simulator'
import { emulations } from '../dist/bhyve_arguments/saved_devices.js'
import { childEnvironment, scratch } from './support/index.js'
import { needs } from './support/programs.js'
import { recipesOf } from './support/recipes.js'
import { commandWhenIdle, needsPools, pool } from './support/zfs_pool.js'
import { capture, diskIn, named, never, owner, provider } from './support/zfs_vm.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const documents = [
  'README.md',
  ...fs.readdirSync(path.join(root, 'docs')).map((name) => path.join('docs', name)),
]

/** Replaces the documented directories of a block with those of the test. */
function withTestDirectories(block: string, runDirectory: string, checkpointDirectory: string): string {
  return block
    .replaceAll(
      'createClient({ checkpointDirectory: ',
      `createClient({ runDirectory: '${runDirectory}', checkpointDirectory: `,
    )
    .replaceAll("'/zroot/checkpoints'", `'${checkpointDirectory}'`)
    .replaceAll("'/tmp/checkpoints'", `'${checkpointDirectory}/other'`)
}

t.test('every JavaScript block runs and prints nothing to standard error', async (t) => {
  // Inside the package, so that blocks can import it by its name.
  const directory = fs.mkdtempSync(path.join(root, 'build-docs-'))
  t.teardown(() => fs.rmSync(directory, { recursive: true }))
  let blocks = 0
  for (const document of documents.filter((name) => name.endsWith('.md'))) {
    const text = fs.readFileSync(path.join(root, document), 'utf8')
    for (const match of text.matchAll(/^```js\n(.*?)^```$/gms)) {
      // One VM per block, because some blocks power it off.
      const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 1024 * 1024 })
      const file = path.join(directory, `${++blocks}.mjs`)
      fs.writeFileSync(file, withTestDirectories(match[1]!, bhyve.runDirectory, scratch(t)))
      const [error, stderr] = await run(file)
      t.equal(error, null, `${document}, block ${blocks}`)
      t.equal(stderr, '', `${document}, block ${blocks}: prints nothing to standard error`)
      await bhyve.stop()
    }
  }
  t.ok(blocks >= 2)
})

function run(file: string): Promise<[Error | null, string]> {
  return new Promise((resolve) => {
    execFile(
      process.execPath,
      [file],
      { env: childEnvironment(), timeout: 30_000 },
      (error, _stdout, stderr) => {
        resolve([error, stderr])
      },
    )
  })
}

/** Shell blocks that need a disk, a network or minutes, by their beginning. The value is the test that runs them. */
const runElsewhere: Readonly<Record<string, string>> = {
  'mkdir try && cd try && npm init -y': "test/deep/package.test.ts: the README's first commands",
  'npx bhyve-checkpoint create vm1 before-upgrade': "test/deep/package.test.ts: the README's first commands",
  'bcheckpoint mode=create': 'test/deep/cbsd_commands.test.ts: the documented commands',
  'module=/usr/local/cbsd': 'test/deep/cbsd_commands.test.ts: the documented module of CBSD',
  'bhyve-checkpoint doctor\n': 'test/deep/doctor_command.test.ts: doctor and plans: the documented commands',
  'npm run demo': '.ci/run: the two commands of the README',
  'npm install bhyve-checkpoint': 'test/deep/package.test.ts: the installation runs no scripts',
  'node node_modules/bhyve-checkpoint/scripts/build-addon.mjs':
    'test/deep/package.test.ts: without a matching prebuild the error explains how to build the addon',
  'npx esbuild': 'test/deep/package.test.ts: works with the package installed beside it',
  'node --permission': "test/deep/package.test.ts: the package works under Node's permission model",
  'zfs set canmount=off tank/vm1':
    'test/deep/disks/zfs/zfs_rollback.test.ts: the documented commands undo a rollback, whatever the mountpoint',
  'mkdir -p ~/base/x64': '.ci/run: FREEBSD_SYSROOT',
  ...Object.fromEntries(
    recipesOf(fs.readFileSync(path.join(root, 'docs/portable.md'), 'utf8')).map(({ title, block }) => [
      block,
      `test/deep/recipes.test.ts: recipe('${title}')`,
    ]),
  ),
}

/** The block of docs/returning.md that undoes a rollback of an image file. */
async function undoImage(t: Test, block: string): Promise<void> {
  const directory = scratch(t)
  const image = path.join(directory, 'vm1.img')
  fs.writeFileSync(image, 'put back')
  fs.writeFileSync(`${image}.ID`, 'former')
  await shell(block.replaceAll('/vms', directory), directory, childEnvironment())
  t.equal(fs.readFileSync(image, 'utf8'), 'former')
  t.equal(fs.readFileSync(`${image}.undone`, 'utf8'), 'put back')
}

t.test('docs/returning.md: a kept dataset can be removed as documented', needsPools(), async (t) => {
  const { name, root } = await pool(t)
  const { image } = diskIn(`${name}/vm1`, root, 'old')
  const [older, younger] = [owner('/checkpoints/vm1'), owner('/checkpoints/vm1')]
  const record = await capture(older, named(`${name}/vm1`))
  const second = await capture(younger, named(`${name}/vm1`))
  const [kept = ''] = await provider.rollback(record, { id: randomUUID(), signal: never }, older)
  await commandWhenIdle(`zfs promote ${name}/vm1`)
  await provider.remove(second, younger)
  await commandWhenIdle(`zfs destroy ${kept}`)
  t.equal(fs.readFileSync(image, 'utf8'), 'old')
  t.strictSame(await provider.missing(record, older), [], 'the other checkpoint is still valid')
})

const shellBlocks: Readonly<Record<string, (t: Test, block: string) => Promise<void>>> = {
  'docs/cli.md': async (t, block) => {
    const { directory, environment } = await commandLine(t)
    if (block.startsWith('bhyve-checkpoint export')) {
      await exported(directory, environment, block)
      return
    }
    if (block.startsWith('bhyve-checkpoint prune')) {
      const created = 'for name in auto-1 auto-2; do bhyve-checkpoint create vm1 $name; done\n'
      const hour = new Date().getHours()
      const { stdout } = await shell(created + block, directory, environment)
      if (new Date().getHours() !== hour) return
      t.match(stdout, /removed vm1\/auto-1/, 'only the last one of an hour is kept')
      return
    }
    const disk = path.join(directory, 'vm1.img')
    fs.writeFileSync(disk, '')
    // As in a project in which the package is installed.
    fs.mkdirSync(path.join(directory, 'node_modules'))
    fs.symlinkSync(root, path.join(directory, 'node_modules/bhyve-checkpoint'))
    const suspend = 'bhyve-checkpoint suspend vm1\n'
    const script = block.startsWith('npx ')
      ? suspend + block.replace('npx ', '')
      : block.replace('/vms/vm1.img', disk)
    const { stdout } = await shell(script, directory, environment)
    t.match(stdout, /suspended vm1.suspend[^]*restored vm1.suspend/)
    const [machine] = await createClient({ runDirectory: path.join(directory, 'run') }).listVirtualMachines()
    t.match(machine, { vm: 'vm1', state: 'running' }, 'restored')
    process.kill(machine!.pid!, 'SIGKILL')
  },
  'docs/portable.md': async (t, block) => {
    const { directory, environment } = await commandLine(t)
    const script = block.replaceAll('/tmp/vm1', path.join(directory, 'unpacked'))
    t.match(
      await exported(directory, environment, script),
      /imported vm1.before-upgrade|before-upgrade\.ckp\.kern/,
    )
  },
  'docs/returning.md': undoImage,
  'docs/storage.md': async (t, block) => {
    await t.test('the documented commands compute the digest', needs('jq', 'xxd', 'openssl'), async (t) => {
      const { directory, environment } = await commandLine(t)
      await shell('bhyve-checkpoint create vm1 before-upgrade', directory, environment)
      const { stdout } = await shell(block, path.join(directory, 'checkpoints', 'vm1'), environment)
      const digests = stdout.match(/\b[0-9a-f]{64}\b/g)
      t.equal(digests?.length, 2)
      t.equal(digests?.[0], digests?.[1], 'the digest of the chunk is the one in the manifest')
    })
  },
  'docs/benchmarks.md': async (t, block) => {
    const manifest = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8')) as {
      scripts: Record<string, string>
    }
    t.ok(manifest.scripts.bench)
    // The measurements take too long for a test. Only their names are checked.
    const { stderr } = await shell('node bench/run.mjs', root, childEnvironment())
    const known = /names: (.*)/.exec(stderr)?.[1]?.split(', ')
    for (const [, name] of block.matchAll(/^npm run bench -- (\S+)/gm)) t.ok(known?.includes(name!), name!)
  },
}

t.test('every shell block runs, in this file or in the named test', async (t) => {
  for (const document of documents.filter((name) => name.endsWith('.md'))) {
    const text = fs.readFileSync(path.join(root, document), 'utf8')
    for (const [, block] of text.matchAll(/^```sh\n(.*?)^```$/gms)) {
      const elsewhere = Object.entries(runElsewhere).find(([start]) => block!.startsWith(start))
      if (elsewhere === undefined) {
        const check = shellBlocks[document]
        if (check === undefined) t.fail(`${document}: nothing runs ${block}`)
        else await check(t, block!)
        continue
      }
      const [file, what] = elsewhere[1].split(': ')
      t.ok(fs.readFileSync(path.join(root, file!), 'utf8').includes(what!), elsewhere[1])
    }
  }
})

/** Makes a directory with a simulated VM, and a `bhyve-checkpoint` on the PATH that uses this directory. */
async function commandLine(t: Test): Promise<{ directory: string; environment: NodeJS.ProcessEnv }> {
  const directory = scratch(t)
  const runDirectory = path.join(directory, 'run')
  fs.mkdirSync(runDirectory)
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 1024 * 1024, runDirectory })
  t.teardown(() => bhyve.stop())
  const bin = path.join(directory, 'bin')
  fs.mkdirSync(bin)
  fs.writeFileSync(
    path.join(bin, 'bhyve'),
    `#!/bin/sh\nexport SIMULATED_BHYVE_RUN_DIRECTORY='${runDirectory}'\n` +
      `exec '${process.execPath}' '${simulatedBhyve}' "$@"\n`,
    { mode: 0o755 },
  )
  const directories = `--run-directory '${runDirectory}' --checkpoint-directory '${directory}/checkpoints'`
  const program = path.join(root, 'dist/cli/main.js')
  fs.writeFileSync(
    path.join(bin, 'bhyve-checkpoint'),
    `#!/bin/sh\ncommand=$1\nshift\n` +
      `[ "$command" = restore ] && set -- --bhyve '${bin}/bhyve' "$@"\n` +
      `exec '${process.execPath}' '${program}' "$command" ${directories} "$@"\n`,
    { mode: 0o755 },
  )
  const environment = {
    ...childEnvironment(),
    PATH: `${bin}:${process.env.PATH ?? ''}`,
    SIMULATED_BHYVE_RUN_DIRECTORY: runDirectory,
    BHYVE_RUN_DIRECTORY: runDirectory,
  }
  return { directory, environment }
}

/** Runs a block in a directory with a checkpoint and its archive. */
async function exported(directory: string, environment: NodeJS.ProcessEnv, block: string): Promise<string> {
  const before =
    'bhyve-checkpoint create vm1 before-upgrade\nbhyve-checkpoint export vm1 before-upgrade >vm1.tar\n'
  return (await shell(before + block, directory, environment)).stdout
}

function shell(
  block: string,
  cwd: string,
  env: NodeJS.ProcessEnv,
): Promise<{ stdout: string; stderr: string }> {
  return new Promise((resolve, reject) => {
    execFile('sh', ['-c', block], { cwd, env, timeout: 60_000 }, (error, stdout, stderr) => {
      // Status 64 is expected from the bench program: called without arguments, it prints its usage.
      if (error !== null && error.code !== 64) reject(new Error(`${stdout}${stderr}`, { cause: error }))
      else resolve({ stdout, stderr })
    })
  })
}

t.test('docs/errors.md explains every error, problem, blocker and warning code', async (t) => {
  const text = fs.readFileSync(path.join(root, 'docs/errors.md'), 'utf8')
  const explained = new Set([...text.matchAll(/`([A-Za-z_-]+)`/g)].map((match) => match[1]!))
  const errors = fs.readFileSync(path.join(root, 'lib/base/errors.ts'), 'utf8').match(/'ERR_[A-Z_]+'/g)!
  const source = (name: string): string => fs.readFileSync(path.join(root, `lib/base/${name}.ts`), 'utf8')
  const problem = source('problem')
  const problems = problem
    .slice(problem.indexOf('export type ProblemCode'), problem.indexOf('export interface Problem'))
    .match(/'[a-z-]+'/g)!
  const types = source('restore_types')
  const restoring = types
    .slice(types.indexOf('export type RestoreBlocker'))
    .match(/(?<=^ {2}\| )'[a-z-]+'/gm)!
  t.equal(restoring.length, 27)
  for (const code of [...errors, ...problems, ...restoring]) t.ok(explained.has(code.slice(1, -1)), code)
})

t.test(
  'docs/doctor.md explains every finding, blocker and warning of a plan, and every device',
  async (t) => {
    const text = fs.readFileSync(path.join(root, 'docs/doctor.md'), 'utf8')
    const types = fs.readFileSync(path.join(root, 'lib/base/finding_types.ts'), 'utf8')
    const codes = [...types.matchAll(/^ {2}\| '([a-z-]+)'/gm)].map((match) => match[1]!)
    t.ok(codes.length > 60)
    const rows = [...text.matchAll(/^\| `([a-z-]+)` *\|/gm)].map((match) => match[1]!)
    t.strictSame(
      [...new Set(rows)].filter((code) => !codes.includes(code)),
      [],
      'no code that does not exist',
    )
    for (const code of codes) t.ok(rows.includes(code), code)
    const devices = text.slice(text.indexOf('## Devices'), text.indexOf('## 5BSD'))
    for (const device of [...emulations.saved, ...emulations.unsaved])
      t.ok(devices.includes(`\`${device}\``), device)
  },
)

/** Documents name a test file without its directory, so the names must be unique. */
const testFiles = fs
  .readdirSync(path.join(root, 'test'), { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.test.ts'))

t.test('the names of test files are unique', async (t) => {
  const names = testFiles.map((file) => path.basename(file))
  t.same([...new Set(names)], names)
})

t.test('every claim of the trust model names an existing test', async (t) => {
  const text = fs.readFileSync(path.join(root, 'SECURITY.md'), 'utf8')
  const model = text.slice(
    text.indexOf('### Who can make requests'),
    text.indexOf('## What is not protected'),
  )
  const claims = model.split(/^- /m).slice(1)
  t.ok(claims.length > 30, `${claims.length} lines`)
  for (const claim of claims) {
    // Without the paragraph or heading that follows the claim.
    const [line] = claim.replace(/\n\n[^]*/, '').split('\n\n')
    const named = [...line!.replace(/\s+/g, ' ').matchAll(/\[([a-z_]+\.test\.ts): ([^\]]+)\]/g)]
    t.ok(named.length > 0, `names a test: ${line}`)
    for (const [, file, name] of named) t.ok(testsIn(file!).has(name!), `${file}: ${name}`)
  }
})

function testsIn(name: string): Set<string> {
  const file = testFiles.find((file) => path.basename(file) === name)
  const source = fs.readFileSync(path.join(root, 'test', file!), 'utf8')
  const names = source.matchAll(/^ *(?:void )?t\.test\(\s*(['"])(.*?)\1,/gms)
  return new Set([...names].map((match) => match[2]!))
}
