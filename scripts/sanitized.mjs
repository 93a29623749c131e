// `npm run test:asan` and `npm run test:tsan` run the tests with an addon that is built with sanitizers. They take
// tap's arguments, such as test files. Without any they run all tests. A report of any process, including children and
// threads, is a failure, even if the tests pass. Linux with gcc.
//
// No suppression is used. Leaks are judged here, one by one. V8 leaves much of its own memory behind when a process
// calls process.exit() or has threads. A suppression by name would hide leaks of the addon too, because V8 calls the
// addon. A leak counts if the addon is among the callers and V8 did not allocate for its own heap at that moment.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))

const flavours = {
  asan: {
    sanitizers: 'address,undefined',
    libraries: ['libasan.so'],
    options: {
      // Status 0 is for leaks, because most of them are Node's. All other reports end the process with SIGABRT.
      ASAN_OPTIONS:
        'detect_leaks=1:exitcode=0:abort_on_error=1:detect_stack_use_after_return=1:check_initialization_order=1',
      UBSAN_OPTIONS: 'print_stacktrace=1:abort_on_error=1',
    },
  },
  tsan: {
    sanitizers: 'thread',
    // libtsan needs the C++ library in the process. Node has it, but shells do not, and would crash without it.
    libraries: ['libtsan.so', 'libstdc++.so.6'],
    options: {
      // Node itself is not built for TSan: its own memory accesses cannot be judged, but its locks are seen.
      TSAN_OPTIONS: 'ignore_noninstrumented_modules=1:second_deadlock_stack=1',
    },
  },
}

const [name, ...tapArguments] = process.argv.slice(2)
const flavour = flavours[name]
if (flavour === undefined) {
  console.error(`usage: node scripts/sanitized.mjs <${Object.keys(flavours).join(' | ')}> [tap's arguments]`)
  process.exit(2)
}

const directory = path.join(root, `build-${name}`)
const reports = path.join(directory, 'reports')
const bin = (tool) => path.join(root, 'node_modules/.bin', tool)

run(process.execPath, [path.join(root, 'scripts/prepare.mjs'), '--tests'])
run(bin('cmake-js'), [
  'compile',
  '--log-level=error',
  ...['-O', path.join(directory, 'build')],
  `--CDBHYVE_SANITIZE=${flavour.sanitizers}`,
])
fs.rmSync(reports, { recursive: true, force: true })
fs.mkdirSync(reports, { mode: 0o777 })
fs.chmodSync(reports, 0o777)
// The tests take several times as long.
const preload = `LD_PRELOAD=${flavour.libraries.map(runtimeOf).join(' ')}`
const tap = [process.execPath, path.join(root, 'scripts/tap.mjs'), '--timeout=1800', ...tapArguments]
const [command, ...words] = [...placement(), 'env', preload, ...tap]
const status = run(command, words, environment(), () => undefined)
const faults = judge(fs.readdirSync(reports).map((file) => fs.readFileSync(path.join(reports, file), 'utf8')))
process.exit(status === 0 && faults.length === 0 ? 0 : 1)

/** Returns the reports about the addon. Prints how many others there are. */
function judge(texts) {
  const [blind, seeing] = partition(texts, isBlind)
  const [leaks, others] = partition(seeing, (text) => text.includes('LeakSanitizer: detected memory leaks'))
  const [ours, nodes] = partition(leaks.flatMap(leaksIn), isOurs)
  const found = [...others, ...ours]
  for (const fault of found) console.error(`${fault}\n`)
  console.log(`${name}: ${found.length} faults`)
  if (name === 'asan') {
    console.log(`${name}: not counted: ${nodes.length} leaks of V8 and Node`)
    console.log(`${name}: not searched for leaks: ${blind.length} processes that cannot trace themselves`)
  }
  return found
}

/** LeakSanitizer cannot inspect a process that is being traced or has changed its user. */
function isBlind(text) {
  return (
    text.includes('LeakSanitizer has encountered a fatal error') && !text.includes('ERROR: AddressSanitizer')
  )
}

function leaksIn(text) {
  return text.split('\n\n').filter((paragraph) => /^(Direct|Indirect) leak/m.test(paragraph))
}

/** The frames are ordered from the allocation outward. */
function isOurs(leak) {
  const frames = leak.split('\n').slice(1)
  const first = frames.findIndex((frame) =>
    /bhyve_checkpoint\.node|\/native\/|\/node-addon-api\//.test(frame),
  )
  return first !== -1 && !frames.slice(0, first).some((frame) => frame.includes('v8::internal::'))
}

function partition(values, belongs) {
  return [values.filter(belongs), values.filter((value) => !belongs(value))]
}

function environment() {
  const options = Object.entries(flavour.options).map(([key, value]) => [
    key,
    `${value}:log_path=${path.join(reports, 'report')}`,
  ])
  return {
    ...process.env,
    ...Object.fromEntries(options),
    BHYVE_CHECKPOINT_PREBUILD: directory,
  }
}

/**
 * gcc's TSan before version 14 cannot start if the system randomizes addresses by more bits than this. `setarch` turns
 * the randomization off. It must not load the TSan library itself, so it comes before `env`.
 */
function placement() {
  const file = '/proc/sys/vm/mmap_rnd_bits'
  const bits = fs.existsSync(file) ? Number(fs.readFileSync(file, 'utf8')) : 0
  return name === 'tsan' && bits > 28 ? ['setarch', '--addr-no-randomize'] : []
}

function runtimeOf(library) {
  const { stdout } = spawnSync('gcc', [`-print-file-name=${library}`], { encoding: 'utf8' })
  const found = stdout?.trim() ?? ''
  if (path.isAbsolute(found)) return fs.realpathSync(found)
  console.error(`gcc does not have ${library}`)
  process.exit(1)
}

function run(command, args, env = process.env, onFailure = (code) => process.exit(code)) {
  const { status: code, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit', env })
  if (error !== undefined) console.error(`${command}: ${error.message}`)
  if (code !== 0) onFailure(code ?? 1)
  return code ?? 1
}
