/** Rewrites the arguments of a VM for another VM, and verifies the result. Runs in the pool. */
import { coverFinder } from './cover.js'
import { type CommandLine, parseCommandLine } from './command_line.js'
import { absoluteIn, configurationIn, type InspectedDisk, runDirectoryIn } from './report.js'
import { resourcesOf } from './resources.js'
import { pathReplacer, rewriteArguments } from './rewrite.js'

export interface ForkRequest {
  /** The VM that the arguments are for. */
  vm: string
  as: string
  /** The disks in the arguments (`readArguments`). */
  disks: readonly InspectedDisk[]
  /** From each recorded path to the path of its copy. */
  copies: readonly (readonly [string, string])[]
  /** The working directory of bhyve. Undefined: that of this process. */
  directory?: string | undefined
}

export interface ForkedArguments extends Pick<CommandLine, 'insertAt' | 'name' | 'runDirectory'> {
  args: string[]
  /** Why these arguments must not be used. */
  fault?: string
  /** What both VMs would use. */
  resources: string[]
}

/** The arguments for the VM `as`. They name none of the original's disks, unless `fault` is present. */
export function forkArguments(args: readonly string[], request: ForkRequest): ForkedArguments {
  const read = configurationIn(request.directory)
  const before = parseCommandLine(args, request.vm, read)
  const rewritten = rewriteArguments(args, { paths: replacements(request), as: request.as })
  const after = parseCommandLine(rewritten, undefined, read)
  const { insertAt, name } = after
  const fault = before.fault ?? faultOfName(before, request) ?? after.fault ?? faultOf(before, after, request)
  return {
    args: rewritten,
    insertAt,
    resources: resourcesOf(rewritten, after),
    ...(fault === undefined ? {} : { fault }),
    ...(name === undefined ? {} : { name }),
    ...runDirectoryIn(request.directory, after),
  }
}

/** The disks as the arguments name them, which may be by a link, and all that is below the recorded paths. */
function replacements(request: ForkRequest): Map<string, string> {
  const copies = new Map(request.copies)
  const disks = request.disks.flatMap((disk): [string, string][] => {
    const copy = copyOf(disk, copies)
    return copy === undefined ? [] : [[disk.path, copy]]
  })
  return new Map([...copies, ...disks])
}

function copyOf({ cover }: InspectedDisk, copies: ReadonlyMap<string, string>): string | undefined {
  const copy = cover && copies.get(cover.path)
  return copy === undefined ? undefined : copy.replace(/\/+$/, '') + (cover?.rest ?? '')
}

function faultOfName({ operand }: CommandLine, { vm, as }: ForkRequest): string | undefined {
  if (operand === undefined || operand === vm || operand === as) return undefined
  return `the arguments are for VM '${operand}', but the restore is of VM '${vm}' as '${as}': use one of these names`
}

const advice =
  'write the path of each disk out on the command line, not in a configuration file (-k), not with a %(variable), and ' +
  'without commas in the name of the new VM'

function faultOf(before: CommandLine, after: CommandLine, request: ForkRequest): string | undefined {
  const machines = [before.machine, after.machine].map((machine) => machine && { ...machine, disks: [] })
  if (after.name !== request.as || JSON.stringify(machines[0]) !== JSON.stringify(machines[1]))
    return `the arguments could not be rewritten for VM '${request.as}': ${advice}`
  const copies = new Map(request.copies)
  const disks = after.machine?.disks ?? []
  const expected = request.disks.map((disk) => copyOf(disk, copies) ?? disk.path)
  const wrong = expected.findIndex((path, index) => disks[index]?.path !== path)
  if (wrong !== -1 || disks.length !== expected.length) {
    const path = request.disks[wrong]?.path ?? ''
    return `the disk '${path}' in the arguments could not be replaced with its copy: ${advice}`
  }
  const shared = copyThatIsOriginal(request)
  if (shared !== undefined) return `the copy '${shared}' is itself a disk of VM '${request.vm}'`
  const left = originalIn(Object.values(after.variables ?? {}), request)
  return left && `'${left}' in the arguments is on a disk of VM '${request.vm}': ${advice}`
}

/** A copy that is, perhaps by a link, one of the disks of the original. */
function copyThatIsOriginal({ disks, copies, directory }: ForkRequest): string | undefined {
  const originalOf = coverFinder(disks.map(({ path }) => absoluteIn(directory, path)))
  const copied = disks.map((disk) => copyOf(disk, new Map(copies)))
  return copied.find((copy) => copy !== undefined && originalOf(absoluteIn(directory, copy))?.rest === '')
}

/** A value that still names one of the original paths or something below it. */
function originalIn(values: readonly string[], request: ForkRequest): string | undefined {
  const paths = replacements(request)
  // A copy may be below its original.
  const withoutCopies = pathReplacer(new Map([...paths.values()].map((copy) => [copy, '?'])))
  const withoutOriginals = pathReplacer(new Map([...paths.keys()].map((path) => [path, '?'])))
  return values.find((value) => {
    const rest = withoutCopies(value)
    return withoutOriginals(rest) !== rest
  })
}
