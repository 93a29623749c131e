// `npm run test:valgrind` runs the native unit tests, and the parsers on the kept fuzzing corpus, under valgrind.
// Linux.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const build = path.join(root, 'build-native')
const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'bc-native-'))

process.on('exit', () => fs.rmSync(directory, { recursive: true, force: true }))

run('cmake', '-S', root, '-B', build, '-DBHYVE_NATIVE_TEST=ON')
run('cmake', '--build', build, '--target', 'native_test')
const checks = ['--quiet', '--error-exitcode=1', '--leak-check=full', '--track-fds=yes']
run('valgrind', ...checks, path.join(build, 'native/test/native_test'), directory)
for (const target of ['nvlist_decode', 'nvlist_encode', 'reply']) {
  run(process.execPath, path.join(root, 'scripts/fuzz.mjs'), target, '--replay')
}

function run(command, ...args) {
  const { status, error } = spawnSync(command, args, { stdio: 'inherit' })
  if (status === 0) return
  console.error(`${command} failed: ${error?.message ?? `status ${status}`}`)
  process.exit(1)
}
