// `npm run fuzz -- <target> [seconds]` searches for inputs that violate a property of the native parsers. It starts
// from the kept corpus and from upstream's own bytes. Findings are written to build-fuzz/: violations as `crash-...`,
// inputs that reach new code in corpus/. With `--keep` instead of the seconds, the latter are reduced to the fewest and
// become the kept corpus. With `--replay` the kept corpus is run once, under valgrind.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const build = path.join(root, 'build-fuzz')
const targets = ['nvlist_decode', 'nvlist_encode', 'reply']
/** Room for two pairs with the longest possible names. */
const longest = 6144
const defaultSeconds = '60'

const [target, mode = defaultSeconds] = process.argv.slice(2)
if (!targets.includes(target) || !/^([1-9]\d*|--keep|--replay)$/.test(mode)) {
  console.error(`usage: npm run fuzz -- <${targets.join(' | ')}> [seconds | --keep | --replay]`)
  process.exit(2)
}

const program = (kind) => path.join(build, 'native/fuzz', `${kind}_${target}`)
const kept = path.join(root, 'native/fuzz/corpus', target)
const found = path.join(build, 'corpus', target)
const seeds = path.join(build, 'seeds', target)

run('cmake', ['-S', root, '-B', build, '-DBHYVE_FUZZ=ON', `-DCMAKE_CXX_COMPILER=${compiler()}`], 'ignore')
run('cmake', ['--build', build, '-j2'], 'ignore')
for (const directory of [kept, found, seeds]) fs.mkdirSync(directory, { recursive: true })
plantSeeds()
if (mode === '--keep') keep()
else if (mode === '--replay') replay()
else fuzz(Number(mode))

function compiler() {
  if (process.env.CXX !== undefined) return process.env.CXX
  return spawnSync('clang++-19', ['--version']).status === 0 ? 'clang++-19' : 'clang++'
}

/** Upstream's own requests and answers. `nvlist_decode` expects the number of descriptors in front of the list. */
function plantSeeds() {
  const golden = JSON.parse(fs.readFileSync(path.join(root, 'test/fixtures/golden/requests.json'), 'utf8'))
  const lists = golden.requests.filter(({ dialect }) => dialect !== 'struct')
  const messages = [...lists, ...golden.replies].map(({ hex, fds = 0 }) => ({
    // The byte that carries the descriptor is a separate message.
    bytes: Buffer.from(hex, 'hex').subarray(0, fds > 0 ? -1 : undefined),
    descriptors: fds,
  }))
  for (const [index, { bytes, descriptors }] of messages.entries()) {
    const seed = target === 'nvlist_decode' ? Buffer.concat([Buffer.from([descriptors]), bytes]) : bytes
    fs.writeFileSync(path.join(seeds, `golden-${index}`), seed)
  }
}

function fuzz(seconds) {
  run(program('fuzz'), [
    `-max_total_time=${seconds}`,
    `-max_len=${longest}`,
    '-timeout=10',
    '-rss_limit_mb=2048',
    '-print_final_stats=1',
    `-artifact_prefix=${build}/`,
    found,
    kept,
    seeds,
  ])
}

function keep() {
  const fewest = path.join(build, 'fewest', target)
  fs.rmSync(fewest, { recursive: true, force: true })
  fs.mkdirSync(fewest, { recursive: true })
  run(program('fuzz'), ['-merge=1', `-max_len=${longest}`, fewest, kept, found, seeds])
  fs.rmSync(kept, { recursive: true, force: true })
  fs.cpSync(fewest, kept, { recursive: true })
  console.log(`kept ${fs.readdirSync(kept).length} inputs in ${path.relative(root, kept)}`)
}

function replay() {
  const inputs = [kept, seeds].flatMap((directory) =>
    fs.readdirSync(directory).map((file) => path.join(directory, file)),
  )
  run('valgrind', ['--quiet', '--error-exitcode=1', '--leak-check=full', program('replay'), ...inputs])
}

function run(command, args, stdout = 'inherit') {
  const { status, signal, error } = spawnSync(command, args, {
    stdio: ['ignore', stdout, 'inherit'],
    cwd: root,
  })
  if (status === 0) return
  const how = error?.message ?? signal ?? `status ${status}`
  console.error(`${path.basename(command)} failed: ${how}`)
  process.exit(1)
}
