/**
 * A script that restores as bhyve does, with a guest that uses the disks in its arguments. It exits with status 1 if
 * its RAM and its disks are of different moments.
 */
import { simulatedBhyve } from 'bhyve-checkpoint/simulator'
import { isFailure } from '../../dist/base/native.js'
import { loadSimulatorNative } from '../../dist/simulator/native_calls.js'
import { until } from './index.js'

export const diskStandIn = `#!/bin/sh
disks=
for word; do
  case $word in
    *virtio-blk,*)
      disk=\${word#*virtio-blk,}
      disks=$disks\${disks:+,}\\"\${disk%%,*}\\"
      ;;
  esac
done
export NODE_OPTIONS= SIMULATED_BHYVE_OPTIONS="{\\"disks\\":[$disks]}"
exec '${process.execPath}' '${simulatedBhyve}' "$@"
`

/** Kills a process that is not a child of this one, and waits for its end. */
export async function killed(pid: number): Promise<void> {
  process.kill(pid, 'SIGKILL')
  await until(() => {
    const status = loadSimulatorNative().processStatus(pid)
    return isFailure(status) || status.state === 'zombie'
  }, 'its end')
}
