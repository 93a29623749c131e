// `npm run check:dependencies` checks the licenses in the lock file, and queries the registry for known vulnerabilities
// of the versions in it. If the registry cannot be reached, the check prints that. With `--strict`, as in a release, an
// unreachable registry is a failure.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const strict = process.argv.includes('--strict')
/** For packages that users install: permissive licenses that require only their own text. */
const forUsers = new Set([
  'MIT',
  'ISC',
  'BSD-2-Clause',
  'BSD-3-Clause',
  'Apache-2.0',
  '0BSD',
  'BlueOak-1.0.0',
])
/** For packages that only we run. The CC licenses are those of data files. */
const forUs = new Set([...forUsers, 'CC0-1.0', 'CC-BY-3.0', 'Python-2.0', 'Unlicense', 'WTFPL'])
/** Its package.json names no license, its license file does. */
const readByHand = new Map([['node_modules/jsonc-simple-parser', 'MIT']])

const { packages } = JSON.parse(fs.readFileSync(path.join(root, 'package-lock.json'), 'utf8'))
const bad = Object.entries(packages).filter(([place, entry]) => !isLicensed(place, entry))
for (const [place, { license }] of bad)
  console.error(`license: ${place || 'this package'}: ${license ?? 'none named'}`)
if (bad.length === 0) console.log(`license: ${Object.keys(packages).length} packages, all allowed`)
const audited = audit()
process.exit(bad.length === 0 && audited ? 0 : 1)

function isLicensed(place, { license = readByHand.get(place), dev = false }) {
  const allowed = dev ? forUs : forUsers
  const choices = (license ?? '').replace(/^\(|\)$/g, '').split(' OR ')
  return choices.some((choice) => allowed.has(choice))
}

function audit() {
  const { stdout } = spawnSync('npm', ['audit', '--json'], { cwd: root, encoding: 'utf8', shell: false })
  const report = parsed(stdout)
  const counts = report?.metadata?.vulnerabilities
  if (counts === undefined) {
    console.error(
      `audit: NOT DONE: the registry could not be reached (${report?.message ?? 'npm returned no report'})`,
    )
    return !strict
  }
  console.log(`audit: ${counts.total} known vulnerabilities`)
  for (const [name, { severity, range }] of Object.entries(report.vulnerabilities ?? {}))
    console.error(`audit: ${severity}: ${name} ${range}`)
  return counts.total === 0
}

function parsed(text) {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
