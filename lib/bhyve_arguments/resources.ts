/**
 * What bhyve's arguments name outside of the VM's disks, and two VMs cannot use or share unnoticed: network devices,
 * serial lines, ports, shared directories, devices of the host (bhyve_config(5) and the sources of the emulations).
 */
import { type CommandLine } from './command_line.js'
import { splitWords } from './getopt.js'

/** Finds the resources in the options of an emulation. */
type Finder = (options: readonly string[]) => string[]

const first: Finder = ([option = '']) => (option.includes('=') || option === 'stdio' ? [] : [option])
const values: Finder = (options) => options.filter((option) => option.includes('='))
const network: Finder = (options) => [
  ...first(options).filter((backend) => backend !== 'slirp'),
  ...options.filter((option) => option.startsWith('hostfwd=')),
]

const emulations: Readonly<Record<string, Finder>> = {
  'virtio-net': network,
  e1000: network,
  ptnet: network,
  passthru: first,
  'virtio-input': first,
  uart: first,
  'virtio-9p': values,
  'virtio-console': values,
  hda: values,
  fbuf: (options) => options.filter((option) => /^(?:tcp|rfb|unix)=/.test(option)),
}

/** Variables of `-o` and `-k`. */
const variables = /\.(?:backend|tcp|rfb|bus|pptdev|path|play|rec|bootvars)$|^gdb\.port$/

/** The resources, each once, as the arguments name them. */
export function resourcesOf(args: readonly string[], commandLine: CommandLine): string[] {
  const found = splitWords(args).options.flatMap(({ letter, value }) => {
    const [key = '', ...rest] = value.split(',')
    if (letter === 's') return emulations[rest[0] ?? '']?.(rest.slice(1)) ?? []
    if (letter === 'l') return ofLpc(key, rest)
    return letter === 'G' ? [`-G ${value}`] : []
  })
  const disks = new Set((commandLine.machine?.disks ?? []).map(({ path }) => path))
  const assigned = Object.entries(commandLine.variables ?? {})
    .filter(([key, value]) => variables.test(key) && !disks.has(value) && value !== 'stdio')
    .map(([key, value]) => `${key}=${value}`)
  return [...new Set([...found, ...assigned])].filter((one) => one !== '')
}

function ofLpc(device: string, options: readonly string[]): string[] {
  if (device.startsWith('com')) return first(options)
  if (device === 'tpm') return options.slice(1, 2)
  // The second file of a boot ROM holds the variables, which the guest writes.
  return device === 'bootrom' ? options.slice(1).filter((option) => option.startsWith('/')) : []
}
