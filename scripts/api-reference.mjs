// `npm run docs:api` generates docs/api from the declarations. With `--check` it only fails if docs/api is out of date.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const kept = path.join(root, 'docs/api')

if (!process.argv.includes('--check')) generate(kept)
else {
  const fresh = fs.mkdtempSync(path.join(os.tmpdir(), 'bhyve-checkpoint-api-'))
  try {
    generate(fresh)
    if (!same(contents(fresh), contents(kept))) fail('docs/api is out of date. Run npm run docs:api')
  } finally {
    fs.rmSync(fresh, { recursive: true })
  }
}

/** A warning is a failure: it reports a name that is used but not documented. */
function generate(out) {
  const typedoc = path.join(root, 'node_modules/typedoc/bin/typedoc')
  const args = [
    typedoc,
    '--options',
    path.join(root, 'typedoc.json'),
    '--out',
    out,
    '--treatWarningsAsErrors',
  ]
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd: root, encoding: 'utf8' })
  if (status !== 0) fail(`${stdout}${stderr}`)
}

function contents(directory) {
  const entries = fs.readdirSync(directory, { recursive: true, withFileTypes: true })
  const files = entries
    .filter((entry) => entry.isFile())
    .map((entry) => path.join(entry.parentPath, entry.name))
  return new Map(files.sort().map((file) => [path.relative(directory, file), fs.readFileSync(file, 'utf8')]))
}

function same(one, other) {
  return one.size === other.size && [...one].every(([file, text]) => other.get(file) === text)
}

function fail(message) {
  console.error(message)
  process.exitCode = 1
}
