/** Runs vm-bhyve to learn where it keeps its VMs. It may have several datastores, some of which are ZFS datasets. */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { CheckpointError, reasonOf } from '../../base/errors.js'

const timeoutMs = 10_000
const maxOutputBytes = 1024 * 1024
/** vm-bhyve calls programs by their names. `rc_force`: it otherwise refuses to run unless `vm_enable` is set. */
const env = {
  PATH: '/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin',
  LC_ALL: 'C',
  rc_force: '1',
}

/** Resolves with the directories that hold VMs, in the order in which vm-bhyve searches them. */
export async function datastoresOf(program: string): Promise<string[]> {
  try {
    const options = {
      cwd: '/',
      env,
      timeout: timeoutMs,
      maxBuffer: maxOutputBytes,
      killSignal: 'SIGKILL',
    } as const
    const { stdout } = await promisify(execFile)(program, ['datastore', 'list'], options)
    return parseDatastores(stdout)
  } catch (error) {
    const message =
      `'${program} datastore list' failed (${reasonOf(error)}), so the directory of the VM is not known and ` +
      'vm-bhyve could not be kept from starting it again. Nothing was sent to bhyve'
    throw new CheckpointError('ERR_VM_SUPERVISED', message, { cause: error })
  }
}

/** The columns are name, type, path and dataset. The dataset of a directory is `-`. Others hold images, not VMs. */
export function parseDatastores(text: string): string[] {
  return text.split('\n').flatMap((line) => {
    const [, directory] = /^\S+\s+(?:zfs|directory)\s+(\/.*?)\s+\S+\s*$/.exec(line) ?? []
    return directory === undefined ? [] : [directory]
  })
}
