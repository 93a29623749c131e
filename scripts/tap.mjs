// tap for the tests that scripts/prepare.mjs compiled. tap loads modules into each test process that compile
// TypeScript, replace modules and trace imports. They take more than a second per test file, because each thread of the
// process loads them too. No test needs them. The arguments are tap's; test files are named as in test/.
import { ChildProcess } from 'node:child_process'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const sources = path.join(root, 'test', path.sep)
const nodeOptions = process.env.NODE_OPTIONS ?? ''
const { spawn } = ChildProcess.prototype

const isTest = (arg) => arg.startsWith(sources) && arg.endsWith('.test.ts')

// tap has no option that removes its modules, and the package process-on-spawn cannot change arguments.
ChildProcess.prototype.spawn = function (options) {
  return spawn.call(this, options.args?.some(isTest) ? withoutModules(options) : options)
}

function withoutModules(options) {
  const args = options.args
    .filter((arg) => !/^--import=.*[/]@tapjs[/]/.test(arg))
    .map((arg) => (isTest(arg) ? compiled(arg) : arg))
  const envPairs = options.envPairs.filter((pair) => !pair.startsWith('NODE_OPTIONS='))
  return { ...options, args, envPairs: [...envPairs, `NODE_OPTIONS=${nodeOptions}`] }
}

function compiled(source) {
  return path.join(root, 'build-tests', path.relative(sources, source).replace(/\.ts$/, '.js'))
}

await import('../node_modules/tap/dist/esm/run.mjs')
