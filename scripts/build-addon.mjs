// Builds the addon of an installed package if it has no prebuild for the platform. ERR_NATIVE_UNAVAILABLE names this
// file. cmake-js and the C++ headers are not dependencies of the package, so that users of a prebuild do not download
// them. They are installed into a temporary directory. The project around the package is not touched.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import { createRequire } from 'node:module'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const tools = ['cmake-js', 'node-addon-api']
const { devDependencies } = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8'))

requireOnPath('cmake', 'cmake')
requireOnPath(process.env.CXX ?? 'c++', 'a C++17 compiler')
if (hasTools()) build(createRequire(path.join(root, 'package.json')).resolve('cmake-js/bin/cmake-js'), root)
else withInstalledTools((modules) => build(path.join(modules, 'cmake-js/bin/cmake-js'), modules))
console.log(`built ${path.join(root, 'build/Release/bhyve_checkpoint.node')}`)

/** A checkout has them. */
function hasTools() {
  return tools.every((tool) => fs.existsSync(path.join(root, 'node_modules', tool)))
}

function withInstalledTools(work) {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'bhyve-checkpoint-build-'))
  try {
    fs.writeFileSync(path.join(directory, 'package.json'), '{ "private": true }\n')
    const wanted = tools.map((tool) => `${tool}@${devDependencies[tool]}`)
    npm(directory, 'install', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error', ...wanted)
    work(path.join(directory, 'node_modules'))
  } finally {
    fs.rmSync(directory, { recursive: true, force: true })
  }
}

/** cmake-js searches for the headers from the project it builds. NODE_PATH adds the directory that has them. */
function build(cmakeJs, modules) {
  // A build that was begun with tools that no longer exist cannot be continued.
  fs.rmSync(path.join(root, 'build'), { recursive: true, force: true })
  const environment = { ...process.env, NODE_PATH: modules }
  run(process.execPath, [cmakeJs, 'compile', '--directory', root, '--log-level', 'error'], environment)
}

function npm(directory, ...args) {
  // Other package managers set the same variable to their own program, which has other options.
  const script = process.env.npm_execpath ?? ''
  const isNpm = path.basename(script) === 'npm-cli.js'
  const [command, first] = isNpm ? [process.execPath, [script]] : ['npm', []]
  run(command, [...first, '--prefix', directory, ...args])
}

function requireOnPath(command, what) {
  if (spawnSync(command, ['--version'], { stdio: 'ignore' }).error === undefined) return
  fail(`Building the addon needs ${what}, but '${command}' was not found`)
}

function run(command, args, env = process.env) {
  const { status, signal, error } = spawnSync(command, args, { cwd: root, env, stdio: 'inherit' })
  if (status === 0) return
  throw new Error(`${path.basename(command)} ${args[0]} failed: ${error?.message ?? signal ?? `status ${status}`}`)
}

function fail(message) {
  console.error(message)
  process.exit(1)
}
