// `npm run check:dependencies`: licences as the lock file has them, and what the registry knows against any version in
// it. Where the registry cannot be asked, it says so aloud: then nothing is known, which is neither good nor bad.
// With `--strict`, as in a release, not being able to ask is a failure.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const strict = process.argv.includes('--strict')
/** Of what users get: permissive, and nothing to print beside the text itself. */
const forUsers = new Set(['MIT', 'ISC', 'BSD-2-Clause', 'BSD-3-Clause', 'Apache-2.0', '0BSD'])
/** Of what only we run. Data files are under the CC ones. */
const forUs = new Set([
  ...forUsers,
  'BlueOak-1.0.0',
  'CC0-1.0',
  'CC-BY-3.0',
  'Python-2.0',
  'Unlicense',
  'WTFPL',
])
/** Its package.json names none, its licence file does. */
const readByHand = new Map([['node_modules/jsonc-simple-parser', 'MIT']])

const { packages } = JSON.parse(fs.readFileSync(path.join(root, 'package-lock.json'), 'utf8'))
const bad = Object.entries(packages).filter(([place, entry]) => !isLicensed(place, entry))
for (const [place, { license }] of bad)
  console.error(`licence: ${place || 'this package'}: ${license ?? 'none named'}`)
if (bad.length === 0) console.log(`licence: ${Object.keys(packages).length} packages, all fine`)
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
      `audit: NOT DONE: the registry could not be asked (${report?.message ?? 'npm gave no report'})`,
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
