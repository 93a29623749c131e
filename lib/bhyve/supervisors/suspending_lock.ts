/**
 * The file with which vm-bhyve learns that a VM is being suspended. As long as it exists, vm-bhyve does not start the VM
 * again when bhyve ends. vm-bhyve removes it when it has stopped. Runs in the pool.
 */
import { CheckpointError } from '../../base/errors.js'
import { Directory } from '../../fs/directory.js'

/** A VM of vm-bhyve on this host. */
export interface VmBhyveMachine {
  vm: string
  /** Where vm-bhyve keeps its VMs. */
  datastores: readonly string[]
  /** vm-bhyve writes the name of its host into its files. */
  hostname: string
}

const lockName = 'suspending.lock'
const maxLockBytes = 1024

/** Throws if vm-bhyve does not run the VM on this host. Changes nothing. */
export function checkVmBhyve(machine: VmBhyveMachine): void {
  using directory = directoryOf(machine)
  assertRunsHere(directory, machine)
}

/** Makes vm-bhyve stop when the VM ends. Returns the path of the file. */
export function writeSuspendingLock(machine: VmBhyveMachine): string {
  using directory = directoryOf(machine)
  assertRunsHere(directory, machine)
  const path = directory.pathOf(lockName)
  if (directory.statusIfAny(lockName) === undefined)
    directory.writeNew(lockName, `${machine.hostname}\n`, false)
  else if (hostIn(directory, lockName) !== machine.hostname) throw foreignLock(machine.vm, path)
  // Otherwise a suspend that died has left it.
  return path
}

function foreignLock(vm: string, path: string): CheckpointError {
  const message =
    `'${path}' exists and does not name this host, so another host may be suspending VM '${vm}'. ` +
    'Nothing was sent to bhyve. If no suspend is in progress, remove that file'
  return new CheckpointError('ERR_VM_SUPERVISED', message, { vm, path })
}

/** The VM runs on. If the file remained, vm-bhyve would stop at the next reboot of the guest. */
export function removeSuspendingLock(machine: VmBhyveMachine): void {
  using directory = directoryOf(machine)
  if (hostIn(directory, lockName) === machine.hostname) directory.unlink(lockName)
}

/** vm-bhyve uses the first datastore that has a configuration of the VM. */
function directoryOf({ vm, datastores }: VmBhyveMachine): Directory {
  for (const path of datastores) {
    using datastore = Directory.openPathIfAny(path)
    const directory = datastore?.openIfAny(vm)
    if (directory?.statusIfAny(`${vm}.conf`)?.kind === 'file') return directory
    directory?.[Symbol.dispose]()
  }
  const where = datastores.map((path) => `'${path}'`).join(', ')
  const message = `No datastore of vm-bhyve (${where}) has VM '${vm}'. Nothing was sent to bhyve`
  throw new CheckpointError('ERR_VM_SUPERVISED', message, { vm })
}

function assertRunsHere(directory: Directory, { vm, hostname }: VmBhyveMachine): void {
  const host = hostIn(directory, 'run.lock')
  if (host === hostname) return
  const why =
    host === undefined ? 'does not exist' : `names the host '${host}', and this one is '${hostname}'`
  const message =
    `'${directory.pathOf('run.lock')}' ${why}, so vm-bhyve does not run VM '${vm}' here. ` +
    'Nothing was sent to bhyve'
  throw new CheckpointError('ERR_VM_SUPERVISED', message, { vm, path: directory.pathOf('run.lock') })
}

function hostIn(directory: Directory, name: string): string | undefined {
  if (directory.statusIfAny(name)?.kind !== 'file') return undefined
  return directory.readText(name, maxLockBytes).split('\n')[0]
}
