/** Every block of the documents runs as it stands, but for where sockets and checkpoints are. */
import { execFile } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve, simulatedBhyve } from 'bhyve-checkpoint/simulator'
import { childEnvironment, scratch } from './support/index.js'
import { needs } from './support/programs.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const documents = [
  'README.md',
  ...fs.readdirSync(path.join(root, 'docs')).map((name) => path.join('docs', name)),
]

/** The block with this machine's places in the place of the documented ones. */
function placed(block: string, runDirectory: string, checkpointDirectory: string): string {
  return block
    .replaceAll(
      'createClient({ checkpointDirectory: ',
      `createClient({ runDirectory: '${runDirectory}', checkpointDirectory: `,
    )
    .replaceAll("'/zroot/checkpoints'", `'${checkpointDirectory}'`)
    .replaceAll("'/tmp/checkpoints'", `'${checkpointDirectory}/other'`)
}

t.test('every block runs', async (t) => {
  // Inside the package, so that it finds itself by its name.
  const folder = fs.mkdtempSync(path.join(root, 'build-docs-'))
  t.teardown(() => fs.rmSync(folder, { recursive: true }))
  let blocks = 0
  for (const document of documents.filter((name) => name.endsWith('.md'))) {
    const text = fs.readFileSync(path.join(root, document), 'utf8')
    for (const match of text.matchAll(/^```js\n(.*?)^```$/gms)) {
      // One for each: some blocks end their VM.
      const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 1024 * 1024 })
      const file = path.join(folder, `${++blocks}.mjs`)
      fs.writeFileSync(file, placed(match[1]!, bhyve.runDirectory, scratch(t)))
      const [error, stderr] = await run(file)
      t.equal(error, null, `${document}, block ${blocks}`)
      t.equal(stderr, '', `${document}, block ${blocks}: says nothing on standard error`)
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

/** Shell blocks that need a disk, a network or minutes of their own: what runs them instead. */
const runElsewhere: Readonly<Record<string, string>> = {
  'mkdir try && cd try && npm init -y': 'test/deep/package.test.ts: the README takes a newcomer',
  'ckp() {': 'test/deep/package.test.ts: the README takes a newcomer',
  'npm run demo': '.ci/run: the two commands of the README',
  'npm install bhyve-checkpoint': 'test/deep/package.test.ts: runs nothing when it is installed',
  'node node_modules/bhyve-checkpoint/scripts/build-addon.mjs':
    'test/deep/package.test.ts: says what is missing where no prebuild fits, and how to build it',
  'npx esbuild': 'test/deep/package.test.ts: works with the package beside it, and says so without it',
  'node --permission': "test/deep/package.test.ts: works under Node's permission model",
  'mkdir -p ~/base/x64': '.ci/run: FREEBSD_SYSROOT',
}

const shellBlocks: Readonly<Record<string, (t: Test, block: string) => Promise<void>>> = {
  'docs/cli.md': async (t, block) => {
    const { folder, environment } = await commandLine(t)
    const disk = path.join(folder, 'vm1.img')
    fs.writeFileSync(disk, '')
    // As in a project that has installed the package.
    fs.mkdirSync(path.join(folder, 'node_modules'))
    fs.symlinkSync(root, path.join(folder, 'node_modules/bhyve-checkpoint'))
    const { stdout } = await shell(block.replace('/vms/vm1.img', disk), folder, environment)
    t.match(stdout, /suspended vm1.suspend[^]*restored vm1.suspend/)
    const [machine] = await createClient({ runDirectory: path.join(folder, 'run') }).listVirtualMachines()
    t.match(machine, { vm: 'vm1', state: 'running' }, 'restored')
    process.kill(machine!.pid!, 'SIGKILL')
  },
  'docs/storage.md': async (t, block) => {
    await t.test('digests by hand', needs('jq', 'xxd', 'openssl'), async (t) => {
      const { folder, environment } = await commandLine(t)
      await shell('bhyve-checkpoint create vm1 before-upgrade', folder, environment)
      const { stdout } = await shell(block, path.join(folder, 'checkpoints', 'vm1'), environment)
      const digests = stdout.match(/\b[0-9a-f]{64}\b/g)
      t.equal(digests?.length, 2)
      t.equal(digests?.[0], digests?.[1], 'the digest of the chunk is the one in the manifest')
    })
  },
  'docs/performance.md': async (t, block) => {
    const manifest = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8')) as {
      scripts: Record<string, string>
    }
    t.ok(manifest.scripts.bench)
    // Measuring takes long: the names are those that the program knows.
    const { stderr } = await shell('node bench/run.mjs', root, childEnvironment())
    const known = /names: (.*)/.exec(stderr)?.[1]?.split(', ')
    for (const [, name] of block.matchAll(/^npm run bench -- (\S+)/gm)) t.ok(known?.includes(name!), name!)
  },
}

t.test('every shell block runs, here or elsewhere', async (t) => {
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

/** A folder with a simulated VM, and a `bhyve-checkpoint` in the PATH that knows its places. */
async function commandLine(t: Test): Promise<{ folder: string; environment: NodeJS.ProcessEnv }> {
  const folder = scratch(t)
  const runDirectory = path.join(folder, 'run')
  fs.mkdirSync(runDirectory)
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 1024 * 1024, runDirectory })
  t.teardown(() => bhyve.stop())
  const bin = path.join(folder, 'bin')
  fs.mkdirSync(bin)
  fs.writeFileSync(
    path.join(bin, 'bhyve'),
    `#!/bin/sh\nexport SIMULATED_BHYVE_RUN_DIRECTORY='${runDirectory}'\n` +
      `exec '${process.execPath}' '${simulatedBhyve}' "$@"\n`,
    { mode: 0o755 },
  )
  const places = `--run-directory '${runDirectory}' --checkpoint-directory '${folder}/checkpoints'`
  const program = path.join(root, 'dist/cli/main.js')
  fs.writeFileSync(
    path.join(bin, 'bhyve-checkpoint'),
    `#!/bin/sh\ncommand=$1\nshift\n` +
      `[ "$command" = restore ] && set -- --bhyve '${bin}/bhyve' "$@"\n` +
      `exec '${process.execPath}' '${program}' "$command" ${places} "$@"\n`,
    { mode: 0o755 },
  )
  const environment = {
    ...childEnvironment(),
    PATH: `${bin}:${process.env.PATH ?? ''}`,
    SIMULATED_BHYVE_RUN_DIRECTORY: runDirectory,
  }
  return { folder, environment }
}

function shell(
  block: string,
  cwd: string,
  env: NodeJS.ProcessEnv,
): Promise<{ stdout: string; stderr: string }> {
  return new Promise((resolve, reject) => {
    execFile('sh', ['-c', block], { cwd, env, timeout: 60_000 }, (error, stdout, stderr) => {
      // The bench program ends with the status of a wrong usage, which is what it is asked for.
      if (error !== null && error.code !== 64) reject(new Error(`${stdout}${stderr}`, { cause: error }))
      else resolve({ stdout, stderr })
    })
  })
}

t.test('every error code and problem is explained', async (t) => {
  const text = fs.readFileSync(path.join(root, 'docs/errors.md'), 'utf8')
  const explained = new Set([...text.matchAll(/`([A-Za-z_-]+)`/g)].map((match) => match[1]!))
  const errors = fs.readFileSync(path.join(root, 'lib/base/errors.ts'), 'utf8').match(/'ERR_[A-Z_]+'/g)!
  const types = ['problem', 'types']
    .map((name) => fs.readFileSync(path.join(root, `lib/base/${name}.ts`), 'utf8'))
    .join('')
  const problems = types
    .slice(types.indexOf('export interface Problem'), types.indexOf('message: string'))
    .match(/'[a-z-]+'/g)!
  const restoring = types
    .slice(types.indexOf('export type RestoreBlocker'), types.indexOf('export interface VirtualMachine'))
    .match(/'[a-z-]+'/g)!
  t.equal(restoring.length, 18)
  for (const code of [...errors, ...problems, ...restoring]) t.ok(explained.has(code.slice(1, -1)), code)
})

/** A file is named without its folder: no two may have one name. */
const testFiles = fs
  .readdirSync(path.join(root, 'test'), { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.test.ts'))

t.test('no two files of tests have one name', async (t) => {
  const names = testFiles.map((file) => path.basename(file))
  t.same([...new Set(names)], names)
})

t.test('every line of the trust model names a test that exists', async (t) => {
  const text = fs.readFileSync(path.join(root, 'SECURITY.md'), 'utf8')
  const model = text.slice(
    text.indexOf('### Who can make requests'),
    text.indexOf('## What is not protected'),
  )
  const claims = model.split(/^- /m).slice(1)
  t.ok(claims.length > 30, `${claims.length} lines`)
  for (const claim of claims) {
    // A paragraph or a heading that follows does not belong to it.
    const [line] = claim.replace(/\n\n[^]*/, '').split('\n\n')
    const named = [...line!.replace(/\s+/g, ' ').matchAll(/\[([a-z_]+\.test\.ts): ([^\]]+)\]/g)]
    t.ok(named.length > 0, `names a test: ${line}`)
    for (const [, file, name] of named) t.ok(testsIn(file!).has(name!), `${file}: ${name}`)
  }
})

function testsIn(name: string): Set<string> {
  const file = testFiles.find((file) => path.basename(file) === name)
  const source = fs.readFileSync(path.join(root, 'test', file!), 'utf8')
  const names = source.matchAll(/^ *t\.test\(\s*(['"])(.*?)\1,/gms)
  return new Set([...names].map((match) => match[2]!))
}
