// `npm run lint:tidy` checks the native code with clang-tidy. Several targets compile the same sources, and clang-tidy
// would check a file once per target, seven times for some. This script keeps one target per file.
// Arguments: the files to check. Default: all.
import { spawn, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const build = path.join(root, 'build-tidy')
const native = path.join(root, 'native')

const settings = ['CMAKE_EXPORT_COMPILE_COMMANDS', 'BHYVE_FUZZ', 'BHYVE_NATIVE_TEST'].map(
  (name) => `--CD${name}=ON`,
)
configure('configure', '--log-level', 'error', '-O', build, ...settings)

const database = path.join(build, 'compile_commands.json')
const first = new Map()
for (const entry of JSON.parse(fs.readFileSync(database, 'utf8')))
  if (!first.has(entry.file)) first.set(entry.file, entry)
fs.writeFileSync(database, JSON.stringify([...first.values()]))

const named = process.argv.slice(2)
const all = fs.readdirSync(native, { recursive: true }).filter((name) => name.endsWith('.cc'))
const files =
  named.length > 0 ? named.map((name) => path.resolve(name)) : all.map((name) => path.join(native, name))
// A file without a command is checked with guessed flags, and its errors are not found.
const unknown = files.filter((file) => !first.has(file))
if (unknown.length > 0) fail(`No target compiles ${unknown.join(', ')}`)

// The largest files first: the last one runs alone.
const waiting = files.sort((one, other) => fs.statSync(other).size - fs.statSync(one).size)
await Promise.all(Array.from({ length: os.availableParallelism() }, checkNext))

async function checkNext() {
  for (let file = waiting.shift(); file !== undefined; file = waiting.shift())
    if ((await status('clang-tidy-19', ['--quiet', '-p', build, file])) !== 0) process.exitCode = 1
}

function status(command, args) {
  return new Promise((resolve, reject) => {
    spawn(command, args, { cwd: root, stdio: 'inherit' }).on('error', reject).on('close', resolve)
  })
}

function configure(...args) {
  const env = { ...process.env, CXX: 'clang++-19' }
  const { status } = spawnSync(path.join(root, 'node_modules/.bin/cmake-js'), args, {
    cwd: root,
    env,
    stdio: 'inherit',
  })
  if (status !== 0) fail('cmake-js configure failed')
}

function fail(message) {
  console.error(message)
  process.exit(1)
}
