// `node scripts/check-prebuilds.mjs` checks that a release has an addon for each of these platforms, and that each
// addon is built for the platform in its name. It fails if one is missing or unexpected.
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const wanted = ['linux-x64', 'linux-arm64', 'freebsd-x64', 'freebsd-arm64']
const directory = path.resolve(process.argv[2] ?? fileURLToPath(new URL('../prebuilds', import.meta.url)))

/** ELF machine numbers. */
const machines = new Map([
  [62, 'x64'],
  [183, 'arm64'],
])
const freebsd = 9

const faults = wanted.flatMap(faultOf)
const found = fs.existsSync(directory) ? fs.readdirSync(directory) : []
for (const name of found)
  if (!wanted.includes(name)) faults.push(`${name}: unexpected, not one of ${wanted.join(', ')}`)
for (const fault of faults) console.error(fault)
if (faults.length > 0) process.exit(1)
console.log(`complete: ${wanted.join(', ')}`)

function faultOf(name) {
  const place = path.join(directory, name)
  const addons = fs.existsSync(place) ? fs.readdirSync(place).filter((file) => file.endsWith('.node')) : []
  if (addons.length !== 1) return [`${name}: expected one addon, found ${addons.length}`]
  const is = platformOf(fs.readFileSync(path.join(place, addons[0])))
  return is === name ? [] : [`${name}: ${addons[0]} is for ${is}`]
}

/** The OS in the ELF header distinguishes FreeBSD. Libraries for Linux have none there. */
function platformOf(elf) {
  if (elf.length < 64 || elf.toString('latin1', 0, 4) !== '\x7fELF') return 'not an ELF file'
  const machine = machines.get(elf.readUInt16LE(18)) ?? 'another machine'
  return `${elf[7] === freebsd ? 'freebsd' : 'linux'}-${machine}`
}
