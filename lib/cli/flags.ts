/** Library messages name options of the library. Here they get the names that the command line uses. */

/** Options whose flag is not simply their name in kebab case. */
const others: ReadonlyMap<string, string> = new Map([
  ['trustedUids', 'trusted-uid'],
  ['memoryBytes', 'memory'],
  ['workdir', 'cbsd'],
  ['labels', 'label'],
  ['datasets', 'disks'],
  ['files', 'disks'],
  ['namePrefix', 'prefix'],
  ['ifExists', 'keep-existing'],
  ['memoryStage.directory', 'memory-stage'],
])

/** Advice that names functions of the library, or what is no option on the command line. */
const calls: readonly [RegExp, string][] = [
  [/\barguments with the option '(?:args|recordArguments)'/g, "arguments after '--'"],
  [/\b[Tt]he option 'args' is not valid\b/g, "The bhyve arguments after '--' are not valid"],
  [/\bpass the option 'args'/g, "pass the bhyve arguments after '--'"],
  [/\bzfsDisks\(\{ datasets: \['([^']*)'\] \}\)/g, '--disks zfs:$1'],
  [/\bzfsDisks\b(?:\(\{ datasets \}\))?/g, '--disks zfs:<dataset>'],
  [/\bfileDisks\b/g, '--disks file:<image>'],
  [/\bOr pass allowCopy: true, which copies\b/g, 'A program that uses the library can also copy'],
  [/\bpass them as 'args'/g, "pass them after '--'"],
  [/\b(?:listCheckpoints|listVirtualMachines) (?:or |\(or )('bhyve-checkpoint \w+')(?:\)|(?=,))/g, '$1'],
  [/\blistCheckpoints, or ('bhyve-checkpoint list')/g, '$1'],
  [/\buse resolveMove \(('bhyve-checkpoint move --resolve')\)/g, 'use $1'],
  [/\bcall moveVirtualMachine (again[^(]*) \(('bhyve-checkpoint move')\)/g, 'run $2 $1'],
  [/\bCall moveVirtualMachine (again[^(]*) \(('bhyve-checkpoint move')\)/g, 'Run $2 $1'],
  [/\bcall moveVirtualMachine\b/g, "run 'bhyve-checkpoint move'"],
  [/\bCall moveVirtualMachine\b/g, "Run 'bhyve-checkpoint move'"],
  [/\bthis call without 'dryRun'/g, "'bhyve-checkpoint move' without --dry-run"],
  [/\bwith pruneCheckpoints\b/g, "with 'bhyve-checkpoint prune'"],
  [
    /\bpass it to createClient with the option 'diskProviders'/g,
    'use the program that made the checkpoint and has this provider',
  ],
]

/** The flag of a library option: `--run-directory` for `runDirectory`. */
export function flagOf(option: string): string {
  const derived = option.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
  return `--${others.get(option) ?? derived}`
}

/** `the option 'dialect' as 'descriptor'` becomes `--dialect descriptor`, and `the option 'again'` becomes `--again`. */
export function withFlags(text: string): string {
  const plain = calls.reduce((result, [call, words]) => result.replace(call, words), text)
  return plain.replace(
    /\b[Tt]he option '([A-Za-z.]+)'(?: as '([^']*)')?/g,
    (_, option: string, value?: string) => flagOf(option) + (value === undefined ? '' : ` ${value}`),
  )
}
