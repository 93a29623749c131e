// Runs the tests: `npm test` those of test/, `npm run test:deep` those of test/deep/, which take longer. Lists at the
// end which tests were skipped because a program is missing, and how to install it.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const isDeep = process.argv[2] === '--deep'
const words = process.argv.slice(isDeep ? 3 : 2)
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'bhyve-checkpoint-test-'))
const list = path.join(scratch, 'skipped')

/** These start first: the last file would run alone. */
const longest = ['cli_stories', 'failures', 'package', 'teardown', 'suspend'].map((name) => `${name}.test.ts`)
const rank = (file) => (longest.includes(path.basename(file)) ? 0 : 1)

/** Many tests wait for disks and timeouts. One more file than processors keeps the processors busy. */
const jobs = `--jobs=${os.availableParallelism() + 1}`

/** All test files, unless the arguments name some. */
function files() {
  if (words.some((word) => word.endsWith('.ts'))) return []
  const all = fs.readdirSync(path.join(root, 'test'), { recursive: true })
  const tests = all.filter(
    (name) => name.endsWith('.test.ts') && isDeep === name.startsWith(`deep${path.sep}`),
  )
  return tests
    .sort()
    .sort((one, other) => rank(one) - rank(other))
    .map((name) => path.join('test', name))
}

try {
  const args = [path.join(root, 'scripts/tap.mjs'), jobs, ...words, ...files()]
  const env = { ...process.env, SKIPPED_PROGRAMS: list }
  const { status } = spawnSync(process.execPath, args, { cwd: root, env, stdio: 'inherit' })
  const skipped = fs.existsSync(list) ? fs.readFileSync(list, 'utf8').trim().split('\n') : []
  for (const reason of new Set(skipped)) console.log(`Not tested: ${reason}`)
  process.exitCode = status ?? 1
} finally {
  fs.rmSync(scratch, { recursive: true, force: true })
}
