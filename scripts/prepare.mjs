// Prepares a checkout: installs the locked dependencies, builds the addon and the TypeScript; with `--tests` compiles
// the tests too. Skips a step if the content of its sources has not changed. Needs nothing but Node.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))

/** tap could compile them, but takes longer for each test file than tsc for all of them. */
const tests = {
  what: 'compiling the tests (tsc)',
  sources: ['test', 'tsconfig.json', 'package-lock.json'],
  stamp: 'build-tests/.prepared',
  run: () => {
    fs.rmSync(path.join(root, 'build-tests'), { recursive: true, force: true })
    const emit = ['--noEmit', 'false', '--rootDir', 'test', '--outDir', 'build-tests', '--sourceMap']
    // `npm run types` checks types.
    tool('tsc', '-p', 'test/tsconfig.json', ...emit, '--noCheck', '--noResolve')
    linkOthers('test', 'build-tests')
  },
}

const steps = [
  {
    what: 'installing dependencies (npm ci)',
    sources: ['package-lock.json'],
    stamp: 'node_modules/.prepared',
    run: () => npm('ci', '--no-audit', '--no-fund'),
  },
  {
    what: 'building the addon (cmake-js)',
    sources: ['native', 'CMakeLists.txt', 'package-lock.json'],
    stamp: 'build/.prepared',
    run: () => tool('cmake-js', 'compile', '--log-level', 'error'),
  },
  {
    what: 'building the library (tsc)',
    sources: ['lib', 'tsconfig.json', 'package.json', 'package-lock.json', 'scripts/build-library.mjs'],
    stamp: 'dist/.prepared',
    run: () => execute(process.execPath, ['scripts/build-library.mjs']),
  },
]

for (const { what, sources, stamp, run } of process.argv.includes('--tests') ? [...steps, tests] : steps) {
  const wanted = digestOf(sources)
  const stampPath = path.join(root, stamp)
  if (fs.existsSync(stampPath) && fs.readFileSync(stampPath, 'utf8') === wanted) continue
  console.log(`${what} ...`)
  run()
  fs.writeFileSync(stampPath, wanted)
}

function digestOf(sources) {
  const hash = createHash('sha256').update(`${process.platform} ${process.arch}`)
  for (const file of sources.flatMap(filesIn))
    hash.update(file).update(fs.readFileSync(path.join(root, file)))
  return hash.digest('hex')
}

function filesIn(source) {
  if (!fs.statSync(path.join(root, source)).isDirectory()) return [source]
  const entries = fs.readdirSync(path.join(root, source)).sort()
  return entries.flatMap((entry) => filesIn(path.join(source, entry)))
}

/** Links everything but TypeScript, so that the compiled tests find their fixtures and programs. */
function linkOthers(from, to) {
  for (const entry of fs.readdirSync(path.join(root, from), { withFileTypes: true })) {
    const [source, target] = [path.join(from, entry.name), path.join(to, entry.name)]
    if (entry.isDirectory() && fs.existsSync(path.join(root, target))) linkOthers(source, target)
    else if (!entry.name.endsWith('.ts')) fs.symlinkSync(path.relative(to, source), path.join(root, target))
  }
}

function npm(...args) {
  // npm sets this variable to its own script. Outside npm, `npm` is on the PATH.
  const script = process.env.npm_execpath
  if (script?.endsWith('.js')) execute(process.execPath, [script, ...args])
  else execute('npm', args)
}

function tool(name, ...args) {
  execute(path.join(root, 'node_modules', '.bin', name), args)
}

/** Prints the output of the command only if it fails. */
function execute(command, args) {
  const { status, signal, error, stdout, stderr } = spawnSync(command, args, { cwd: root, encoding: 'utf8' })
  if (status === 0) return
  process.stderr.write(`${stdout ?? ''}${stderr ?? ''}`)
  console.error(
    `${path.basename(command)} ${args.join(' ')} failed: ${error?.message ?? signal ?? `status ${status}`}`,
  )
  process.exit(1)
}
