/** Parses the list of mounted file systems: that of mount(8) on FreeBSD and macOS, and that of /proc on Linux. */

export interface Mount {
  directory: string
  /** The type of the file system, in lower case: `ufs`, `zfs`, `nfs`, `tmpfs`, `ext4`. */
  type: string
  options: readonly string[]
}

/** `/dev/ada0p2 on / (ufs, local, soft-updates)`, or `/dev/sda1 / ext4 rw,relatime 0 0`. */
export function parseMounts(text: string | undefined): Mount[] {
  return (text ?? '').split('\n').flatMap((line) => {
    const mounted = / on (\/.*) \(([^()]*)\)$/.exec(line)
    if (mounted !== null) {
      const [, directory = '', listed = ''] = mounted
      const [type = '', ...options] = listed.split(', ')
      return [{ directory, type: type.toLowerCase(), options }]
    }
    const [, directory, type, options] = /^\S+ (\/\S*) (\S+) (\S+) \d+ \d+$/.exec(line) ?? []
    if (directory === undefined || type === undefined || options === undefined) return []
    return [{ directory: unescaped(directory), type: type.toLowerCase(), options: options.split(',') }]
  })
}

/** Linux writes blanks and backslashes as octal numbers. */
function unescaped(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)))
}

/** The file system that contains a real path. A later mount hides an earlier one. */
export function mountOf(realPath: string, mounts: readonly Mount[]): Mount | undefined {
  const containing = mounts.filter(
    ({ directory }) => directory === '/' || realPath === directory || realPath.startsWith(`${directory}/`),
  )
  return containing.reduce<Mount | undefined>(
    (best, mount) => (best === undefined || mount.directory.length >= best.directory.length ? mount : best),
    undefined,
  )
}
