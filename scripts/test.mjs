// Runs the tests: `npm test` the ones of test/, `npm run test:deep` those of test/deep/, which take longer. Repeats at the
// end which tests were skipped for want of a program, and how to install it.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'bhyve-checkpoint-test-'))
const list = path.join(scratch, 'skipped')
const [, , ...args] = process.argv
const isDeep = args[0] === '--deep'
const words = isDeep ? args.slice(1) : args
const named = words.some((word) => word.endsWith('.ts'))
const files =
  isDeep && !named ? fs.readdirSync(path.join(root, 'test/deep')).map((name) => `test/deep/${name}`) : []

try {
  const tap = path.join(root, 'node_modules/.bin/tap')
  const env = { ...process.env, SKIPPED_PROGRAMS: list }
  const { status } = spawnSync(tap, [...words, ...files], { cwd: root, env, stdio: 'inherit' })
  const skipped = fs.existsSync(list) ? fs.readFileSync(list, 'utf8').trim().split('\n') : []
  for (const reason of new Set(skipped)) console.log(`Not tested: ${reason}`)
  process.exitCode = status ?? 1
} finally {
  fs.rmSync(scratch, { recursive: true, force: true })
}
