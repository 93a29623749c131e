/** Tests the packed package as users get it: installed in an empty project, without a compiler and a network. */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import t, { type Test } from 'tap'
import ts from 'typescript'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { scratch } from '../support/index.js'
import { copyOf, install, ownEnvironment, pack, type Project, root, runIn } from '../support/package.js'
import { Compilation, formatHost } from '../support/compilation.js'

const packed = pack(t)
const project = install(t, packed)

t.test('the package contains what it needs and nothing else', async (t) => {
  const files = new Set(packed.files.map((file) => file.path))
  const needed = [
    'package.json',
    'README.md',
    'LICENSE',
    'CHANGELOG.md',
    'dist/index.js',
    'dist/index.d.ts',
    'dist/cli/main.js',
    'dist/cli/cbsd/bcheckpoint.js',
    'dist/worker/worker.js',
    'dist/simulator/index.js',
    'dist/simulator/index.d.ts',
    'native/addon/addon.cc',
    'CMakeLists.txt',
    'scripts/build-addon.mjs',
    'docs/errors.md',
    'man/bhyve-checkpoint.8',
    `prebuilds/${process.platform}-${process.arch}/bhyve-checkpoint.glibc.node`,
  ]
  for (const file of needed) t.ok(files.has(file), file)
  const unwanted = [...files].filter((file) =>
    /^(lib|test|build|node_modules|native\/fuzz)\/|\.map$|\/\.[^/]*$/.test(file),
  )
  t.same(unwanted, [])
  t.equal(
    [...files].filter((file) => file.endsWith('.node')).length,
    1,
    'one prebuild, which the limit below assumes',
  )
  t.ok(packed.size < 980_000, `${packed.size} bytes are under 980 kB`)
})

t.test('every file that the code loads is in the package', async (t) => {
  const code = packed.files.map(({ path: file }) => file).filter((file) => /^dist\/.*\.js$/.test(file))
  const loaded = code.flatMap((file) => {
    const text = fs.readFileSync(path.join(project.installed, file), 'utf8')
    const { importedFiles } = ts.preProcessFile(text, true, true)
    const relative = importedFiles.map(({ fileName }) => fileName).filter((name) => name.startsWith('.'))
    return relative.map((name) => path.join(path.dirname(file), name))
  })
  t.ok(loaded.length > 300)
  const known = new Set(code)
  t.same(
    [...new Set(loaded)].filter((file) => !known.has(file)),
    [],
  )
  const used = new Set(loaded)
  const chunks = code.filter((file) => file.startsWith('dist/commands/'))
  t.ok(chunks.length > 10)
  t.same(
    chunks.filter((file) => !used.has(file)),
    [],
    'nothing is left of an earlier build',
  )
})

t.test('the installation runs no scripts and adds three small dependencies', async (t) => {
  const manifest = JSON.parse(fs.readFileSync(path.join(project.installed, 'package.json'), 'utf8')) as {
    scripts: object
    dependencies: object
  }
  for (const script of ['preinstall', 'install', 'postinstall', 'prepare'])
    t.notOk(script in manifest.scripts, script)
  t.same(Object.keys(manifest.dependencies), ['get-east-asian-width', 'node-gyp-build', 'tar'])
  const modules = fs.readdirSync(path.join(project.directory, 'node_modules'))
  t.same(
    modules.filter((name) => !name.startsWith('.')),
    [
      ...['@isaacs', 'bhyve-checkpoint', 'chownr', 'get-east-asian-width', 'minipass', 'minizlib'],
      ...['node-gyp-build', 'tar', 'yallist'],
    ],
    'tar has dependencies of its own',
  )
})

/** Makes a checkpoint of a simulated VM with the installed package. */
const life = `
async function life({ createClient, CheckpointError }, { SimulatedBhyve }) {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 1048576 })
  const checkpointDirectory = process.env.CHECKPOINTS
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory })
  const checkpoint = await client.createCheckpoint('vm1')
  const { ok, depth } = await client.verifyCheckpoint('vm1', checkpoint.name, { depth: 'content' })
  const missing = await client.getCheckpoint('vm1', 'none').catch((error) => error)
  await bhyve.stop()
  console.log(checkpoint.name, ok, depth, missing instanceof CheckpointError, missing.code)
}
`
const lifesOutput = 'checkpoint true content true ERR_CHECKPOINT_NOT_FOUND\n'

function lives(t: Test, name: string, text: string): void {
  const directory = scratch(t)
  const env = { ...project.env, CHECKPOINTS: path.join(directory, 'checkpoints') }
  const { status, stdout, stderr } = runIn({ ...project, env }, name, text)
  t.equal(stdout, lifesOutput)
  t.equal(status, 0, stderr)
}

t.test('the package can be imported', async (t) => {
  const imports =
    "import * as main from 'bhyve-checkpoint'\nimport * as simulator from 'bhyve-checkpoint/simulator'\n"
  lives(t, 'life.mjs', `${imports}${life}\nawait life(main, simulator)`)
})

t.test('the package can be loaded by require()', async (t) => {
  lives(t, 'life.cjs', `${life}\nlife(require('bhyve-checkpoint'), require('bhyve-checkpoint/simulator'))`)
})

/** Loads every module in a context of node:vm, as vitest's vmThreads does. The context has no Symbol.dispose. */
const inContext = `
import fs from 'node:fs'
import { builtinModules } from 'node:module'
import vm from 'node:vm'
const globals = { console, process, Buffer, URL, performance, AbortController, AbortSignal, queueMicrotask,
  setTimeout, clearTimeout, setInterval, clearInterval, setImmediate, clearImmediate }
const context = vm.createContext({ ...globals })
const modules = new Map()
async function load(url) {
  if (!modules.has(url)) modules.set(url, builtinModules.includes(url.replace('node:', '')) ? await builtin(url) : text(url))
  return modules.get(url)
}
async function builtin(url) {
  const names = await import(url)
  const exports = Object.keys(names)
  return new vm.SyntheticModule(exports, function () {
    for (const name of exports) this.setExport(name, names[name])
  }, { context })
}
function text(url) {
  const initializeImportMeta = (meta) => void (meta.url = url)
  const options = { identifier: url, context, initializeImportMeta, importModuleDynamically: evaluated }
  return new vm.SourceTextModule(fs.readFileSync(new URL(url), 'utf8'), options)
}
const link = (specifier, { identifier }) =>
  load(specifier.startsWith('.') ? new URL(specifier, identifier).href : specifier)
async function evaluated(specifier, from = { identifier: import.meta.url }) {
  const module = await link(specifier, from)
  if (module.status === 'unlinked') await module.link(link)
  await module.evaluate()
  return module
}
const { namespace: main } = await evaluated(import.meta.resolve('bhyve-checkpoint'))
const { namespace: simulator } = await evaluated(import.meta.resolve('bhyve-checkpoint/simulator'))
`

t.test('the package works in a context of node:vm', async (t) => {
  const directory = scratch(t)
  const env = { ...project.env, CHECKPOINTS: path.join(directory, 'checkpoints') }
  // The library's dates are objects of the main context. Its calls must accept them as arguments.
  const since = `
    const bhyve = await simulator.SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 1048576 })
    const { runDirectory } = bhyve
    const client = main.createClient({ runDirectory, checkpointDirectory: process.env.CHECKPOINTS })
    const { createdAt } = await client.suspend('vm1')
    console.log((await client.suspendedCheckpoint('vm1', { since: createdAt })).name)
    await bhyve.stop()`
  const program = `${inContext}${life}await life(main, simulator)\n${since}`
  const { status, stdout, stderr } = runIn(
    { ...project, env },
    'context.mjs',
    program,
    [],
    ['--experimental-vm-modules', '--disable-warning=ExperimentalWarning'],
  )
  t.equal(stdout, `${lifesOutput}suspend\n`, stderr)
  t.equal(status, 0)
})

t.test('the command line of the package works', async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 1024 * 1024 })
  t.teardown(() => bhyve.stop())
  const directories = [
    '--run-directory',
    bhyve.runDirectory,
    '--checkpoint-directory',
    path.join(scratch(t), 'c'),
  ]
  const command = path.join(project.directory, 'node_modules/.bin/bhyve-checkpoint')
  const run = (...words: string[]) => spawnSync(command, words, { env: project.env, encoding: 'utf8' })
  const version = (
    JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8')) as { version: string }
  ).version
  t.equal(run('--version').stdout, `${version}\n`)
  t.match(run('create', 'vm1', ...directories), { status: 0, stdout: /^created vm1\/checkpoint/ })
  t.match(run('verify', 'vm1', '--content', ...directories), {
    status: 0,
    stdout: /^vm1\/checkpoint: complete/,
  })
  for (const name of ['bcheckpoint', 'bsuspend', 'bpause']) {
    const file = path.join(project.directory, 'node_modules/.bin', name)
    t.match(spawnSync(file, ['--help'], { env: project.env, encoding: 'utf8' }), {
      status: 0,
      stdout: `usage: ${name} jname=`,
    })
  }
  const workdir = scratch(t)
  fs.mkdirSync(path.join(workdir, 'jails-system'))
  const env = { ...project.env, cbsd_workdir: workdir, BHYVE_RUN_DIRECTORY: bhyve.runDirectory }
  const bcheckpoint = path.join(project.directory, 'node_modules/.bin/bcheckpoint')
  const created = spawnSync(bcheckpoint, ['mode=create', 'jname=vm1'], { env, encoding: 'utf8' })
  t.equal(created.status, 0, created.stderr)
})

t.test("the README's first commands make and verify a checkpoint", async (t) => {
  const readme = fs.readFileSync(path.join(root, 'README.md'), 'utf8')
  const section = readme.slice(readme.indexOf('## Try it'), readme.indexOf('## What it does not do'))
  const [install = '', use = ''] = [...section.matchAll(/^```sh\n(.*?)^```$/gms)].map((match) => match[1]!)
  const begun = install.slice(install.indexOf('export '), install.indexOf('while '))
  // npx itself would contact the registry.
  const npx = 'npx() { "./node_modules/.bin/$@"; }'
  const listens = `i=0; until [ -S run/vm1 ] || [ $i = 500 ]; do i=$((i + 1)); '${process.execPath}' -e 0; done`
  const script = [npx, begun, listens, 'set -e', use, 'wait'].join('\n')
  const options = { cwd: project.directory, env: project.env, encoding: 'utf8' } as const
  const { status, stdout, stderr } = spawnSync('/bin/sh', ['-c', script], { ...options, timeout: 120_000 })
  t.equal(status, 0, stderr)
  t.match(stdout, /^created vm1\/before-upgrade: 16\.0 MiB of RAM/m)
  t.match(stdout, /^vm1\/before-upgrade: complete \(content/m)
  t.match(stdout, /^vm1 +before-upgrade +verified /m)
  t.match(stdout, /^suspended vm1\/suspend/m)
  t.match(stdout, /^simulated bhyve exited with status 5 because its VM was suspended$/m)
})

const typed = `
import { createClient, CheckpointError, type Checkpoint, type ErrorCode } from 'bhyve-checkpoint'
import { SimulatedBhyve, simulatedBhyve } from 'bhyve-checkpoint/simulator'
const client = createClient({ runDirectory: '/run' })
export const made: Promise<Checkpoint> = client.createCheckpoint('vm1', { signal: AbortSignal.timeout(1) })
export const codeOf = (error: CheckpointError): ErrorCode => error.code
export const bhyve: Promise<SimulatedBhyve> = SimulatedBhyve.start({ vm: 'vm1' })
export const executable: string = simulatedBhyve
// @ts-expect-error: sizes are numbers
void client.createCheckpoint('vm1', { memoryBytes: '1' })
`

/** How a CommonJS file uses the package under node16, which does not allow require of an ES module. */
const imported = `
import type { Checkpoint } from 'bhyve-checkpoint' with { 'resolution-mode': 'import' }
export const save = async (vm: string): Promise<Checkpoint> =>
  (await import('bhyve-checkpoint')).createClient().createCheckpoint(vm)
`

const { ModuleKind: Module, ModuleResolutionKind: Resolution } = ts

/** How docs/install.md has it. */
const compilations = [
  { module: Module.NodeNext, resolution: Resolution.NodeNext, file: 'typed.mts' },
  { module: Module.NodeNext, resolution: Resolution.NodeNext, file: 'typed.cts' },
  { module: Module.Node20, resolution: Resolution.Node16, file: 'typed.cts' },
  { module: Module.ESNext, resolution: Resolution.Bundler, file: 'typed.ts' },
  { module: Module.Preserve, resolution: Resolution.Bundler, file: 'typed.cts' },
  { module: Module.Node16, resolution: Resolution.Node16, file: 'imported.cts' },
  { module: Module.Node16, resolution: Resolution.Node16, file: 'typed.cts', error: 1479 },
  { module: Module.ESNext, resolution: Resolution.Node10, file: 'typed.ts', error: 2307 },
]

for (const { module, resolution, file, error } of compilations) {
  const outcome = error === undefined ? 'compiles' : `fails with TS${String(error)}`
  const how = `module ${Module[module]} and ${Resolution[resolution]}`
  t.test(`TypeScript: ${file} ${outcome} with ${how}, as docs/install.md has it`, async (t) => {
    const source = path.join(project.directory, file)
    fs.writeFileSync(source, file === 'imported.cts' ? imported : typed)
    const found = new Compilation(project, { module, moduleResolution: resolution }).diagnosticsOf(source)
    const codes = found.map(({ code }) => code)
    const text = ts.formatDiagnostics(found, formatHost)
    if (error === undefined) t.strictSame(codes, [], text)
    else t.ok(codes.includes(error), text)
  })
}

const guarded = `
import { createClient } from 'bhyve-checkpoint'
const [runDirectory, checkpointDirectory] = process.argv.slice(2)
const client = createClient({ runDirectory, checkpointDirectory })
const { name } = await client.createCheckpoint('vm1')
const { ok } = await client.verifyCheckpoint('vm1', name, { depth: 'content' })
console.log(ok, process.permission.has('child'), await client.destroyAll('vm1'))
`

t.test("the package works under Node's permission model", async (t) => {
  const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 1024 * 1024 })
  t.teardown(() => bhyve.stop())
  const permission = process.allowedNodeEnvironmentFlags.has('--permission')
    ? '--permission'
    : '--experimental-permission'
  const readable = [project.directory, '/etc/alpine-release'].map((file) => `--allow-fs-read=${file}`)
  const grants = [permission, '--allow-addons', '--allow-worker', ...readable]
  const directories = [bhyve.runDirectory, path.join(scratch(t), 'c')]
  const granted = runIn(project, 'guarded.mjs', guarded, directories, grants)
  t.equal(granted.stdout, "true false [ 'checkpoint' ]\n", granted.stderr)
  t.equal(granted.status, 0)
  for (const missing of ['--allow-addons', '--allow-worker']) {
    const flags = grants.filter((grant) => grant !== missing)
    const { status, stderr } = runIn(project, 'guarded.mjs', guarded, directories, flags)
    t.not(status, 0)
    t.match(stderr, missing === '--allow-addons' ? /ERR_NATIVE_UNAVAILABLE/ : /ERR_SYSTEM/)
  }
})

t.test('without a matching prebuild the error explains how to build the addon', async (t) => {
  const bare = copyOf(t, project)
  fs.rmSync(path.join(bare.installed, 'prebuilds'), { recursive: true })
  const text = `import { createCheckpoint, createClient } from 'bhyve-checkpoint'
    import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
    const client = createClient()
    const calls = [createCheckpoint('vm1'), client.listCheckpoints('vm1'), client.listVirtualMachines(),
      client.restore('vm1', 'c', { args: ['vm1'] }), SimulatedBhyve.start({ vm: 'vm1' }), createCheckpoint('../vm1')]
    const errors = (await Promise.allSettled(calls)).map(({ reason }) => reason)
    const [{ message, cause }] = errors
    console.log(JSON.stringify({ codes: errors.map(({ code }) => code), message, cause: cause?.message }))`
  const { stdout, stderr } = runIn(bare, 'bare.mjs', text)
  const errors = JSON.parse(stdout || '{}') as { codes?: string[]; message: string; cause: string }
  const everyCall = Array<string>(5).fill('ERR_NATIVE_UNAVAILABLE')
  t.strictSame(errors.codes, [...everyCall, 'ERR_INVALID_VM_NAME'], `the import itself succeeds ${stderr}`)
  const { message, cause } = errors
  const builder = path.join(bare.installed, 'scripts/build-addon.mjs')
  for (const part of [
    `${process.platform}-${process.arch}`,
    process.platform === 'linux' ? 'glibc 2.' : 'system libc',
    path.join(bare.installed, 'build/Release'),
    path.join(bare.installed, 'prebuilds', `${process.platform}-${process.arch}`),
    `node '${builder}'`,
  ]) {
    t.match(message, part)
  }
  t.match(cause, 'No native build was found')
  const program = path.join(bare.directory, 'node_modules/.bin/bhyve-checkpoint')
  const run = (...words: string[]) => spawnSync(program, words, { env: bare.env, encoding: 'utf8' })
  t.equal(run('create', '--help').status, 0)
  const list = run('list', 'vm1')
  t.equal(list.status, 1)
  t.match(list.stderr, /ERR_NATIVE_UNAVAILABLE|No native addon can be loaded/)
  callsNpm(t, builder)
  buildsItself(t, bare, builder)
})

t.test('BHYVE_CHECKPOINT_ADDON names the only addon that is loaded', async (t) => {
  const directory = scratch(t)
  const addon = path.join(directory, 'own.node')
  fs.copyFileSync(path.join(root, 'build/Release/bhyve_checkpoint.node'), addon)
  const text = `import { createClient } from 'bhyve-checkpoint'
    const listed = await createClient({ checkpointDirectory: '/nonexistent' }).listCheckpoints('vm1').catch((error) => error)
    console.log(Array.isArray(listed), listed.code, listed.message)`
  const run = (named: string) => {
    const env = { ...project.env, BHYVE_CHECKPOINT_ADDON: named }
    return runIn({ ...project, env }, 'named.mjs', text).stdout
  }
  t.match(run(addon), /^true/)
  fs.writeFileSync(addon, 'no addon')
  const said = run(addon)
  t.match(said, /^false ERR_NATIVE_UNAVAILABLE/)
  t.ok(said.includes(`Paths tried: ${addon} (BHYVE_CHECKPOINT_ADDON).`), said)
})

const esbuild = createRequire(import.meta.url).resolve('esbuild/bin/esbuild')
const bundled = `
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
const calls = [createClient().listCheckpoints('vm1'), SimulatedBhyve.start({ vm: 'vm1' })]
Promise.allSettled(calls).then((results) =>
  console.log(JSON.stringify(results.map(({ reason }) => [reason.code, reason.message]))))
`

function bundle(name: string, text: string, ...flags: string[]): string {
  fs.writeFileSync(path.join(project.directory, 'entry.mjs'), text)
  const args = [
    'entry.mjs',
    '--bundle',
    '--platform=node',
    '--log-level=error',
    ...flags,
    `--outfile=${name}`,
  ]
  const options = { cwd: project.directory, env: ownEnvironment(), encoding: 'utf8' } as const
  const { status, stdout, stderr } = spawnSync(esbuild, args, options)
  if (status !== 0) throw new Error(`${stdout}${stderr}`)
  return fs.readFileSync(path.join(project.directory, name), 'utf8')
}

for (const [format, ending] of [
  ['esm', 'mjs'],
  ['cjs', 'cjs'],
] as const) {
  t.test(
    `a bundle (${format}) works with the package installed beside it; without it the error explains that`,
    async (t) => {
      const name = `bundle.${ending}`
      const program = `import * as main from 'bhyve-checkpoint'\nimport * as simulator from 'bhyve-checkpoint/simulator'
      ${life}life(main, simulator)`
      lives(t, name, bundle(name, program, `--format=${format}`, '--external:bhyve-checkpoint'))
      const { status, stdout, stderr } = runIn(project, name, bundle(name, bundled, `--format=${format}`))
      t.equal(status, 0, stderr)
      const errors = JSON.parse(stdout) as [string, string][]
      t.equal(errors.length, 2)
      for (const [code, message] of errors) {
        t.equal(code, 'ERR_NATIVE_UNAVAILABLE')
        t.ok(message.includes('was bundled into'), message)
        t.ok(message.includes('--external:bhyve-checkpoint'), message)
        if (format === 'esm') t.ok(message.includes(path.join(project.directory, name)), message)
      }
    },
  )
}

/** The builder calls npm under any package manager. Others set npm_execpath to their own program. */
function callsNpm(t: Test, builder: string): void {
  const bin = scratch(t)
  fs.writeFileSync(path.join(bin, 'npm'), '#!/bin/sh\necho "npm was given $3"\nexit 3\n', { mode: 0o755 })
  const PATH = `${bin}:${process.env.PATH ?? ''}`
  const env = ownEnvironment({ PATH, npm_execpath: '/usr/lib/yarn/bin/yarn.js' })
  const { status, stdout } = spawnSync(process.execPath, [builder], { env, encoding: 'utf8' })
  t.equal(status, 1)
  t.equal(stdout, 'npm was given install\n')
}

/** Runs the command from the message. The modules that it would download are provided. */
function buildsItself(t: Test, bare: Project, builder: string): void {
  const modules = path.join(bare.installed, 'node_modules')
  fs.symlinkSync(path.join(root, 'node_modules'), modules)
  const built = spawnSync(process.execPath, [builder], { env: ownEnvironment(), encoding: 'utf8' })
  t.equal(built.status, 0, built.stderr)
  fs.rmSync(modules)
  const env = { ...bare.env, CHECKPOINTS: path.join(scratch(t), 'checkpoints') }
  const imports =
    "import * as main from 'bhyve-checkpoint'\nimport * as simulator from 'bhyve-checkpoint/simulator'\n"
  const { stdout, stderr } = runIn(
    { ...bare, env },
    'life.mjs',
    `${imports}${life}\nawait life(main, simulator)`,
  )
  t.equal(stdout, lifesOutput, stderr)
}

t.test('check-prebuilds requires every prebuild, each for the platform of its directory', async (t) => {
  const directory = scratch(t)
  const check = () =>
    spawnSync(process.execPath, [path.join(root, 'scripts/check-prebuilds.mjs'), directory], {
      encoding: 'utf8',
    })
  const add = (name: string, system: number, machine: number) => {
    const elf = Buffer.alloc(64)
    elf.write('\x7fELF', 'latin1')
    elf[7] = system
    elf.writeUInt16LE(machine, 18)
    fs.mkdirSync(path.join(directory, name))
    fs.writeFileSync(path.join(directory, name, 'addon.node'), elf)
  }
  add('linux-x64', 0, 62)
  add('linux-arm64', 0, 183)
  add('freebsd-x64', 9, 62)
  t.match(check().stderr, /^freebsd-arm64: expected one addon, found 0$/m)
  t.equal(check().status, 1)
  add('freebsd-arm64', 9, 62)
  t.match(check().stderr, /^freebsd-arm64: addon.node is for freebsd-x64$/m)
  t.equal(check().status, 1)
  fs.rmSync(path.join(directory, 'freebsd-arm64'), { recursive: true })
  add('freebsd-arm64', 9, 183)
  t.equal(check().status, 0)
  add('darwin-arm64', 0, 183)
  t.equal(check().status, 1)
})
