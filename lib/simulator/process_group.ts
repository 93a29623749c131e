/** Starts and ends the simulator processes of one VM or of a fleet. */
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { launch, workingDirectoryOf, type SimulatorProcess } from './child.js'
import type { ProcessSettings, ServedVm } from './process.js'
import type { VmSettings } from './settings.js'

/** What to start. */
export interface StartPlan {
  /** The VMs of each process. */
  readonly processes: readonly (readonly VmSettings[])[]
  /** The process runs on after the suspend of one of its VMs. */
  readonly outlivesSuspend: boolean
  /** The directory of the sockets of the VMs that have none of their own. Empty: in the temporary directory. */
  readonly runDirectory: string
}

/** Processes that were started together. They have a temporary directory in common. */
export class ProcessGroup {
  readonly processes: readonly SimulatorProcess[]
  readonly runDirectory: string
  readonly #temporaryDirectory: string
  #stopped: Promise<void> | undefined

  private constructor(
    processes: readonly SimulatorProcess[],
    runDirectory: string,
    temporaryDirectory: string,
  ) {
    this.processes = processes
    this.runDirectory = runDirectory
    this.#temporaryDirectory = temporaryDirectory
  }

  /**
   * Resolves when every VM listens. As in bhyve, a relative path in a request is relative to the working directory of
   * the process. That is the directory `cwd` in the temporary directory, next to the default run directory. A file in
   * `cwd` was written there by mistake.
   */
  static async start(plan: StartPlan): Promise<ProcessGroup> {
    // The simulator process needs the addon. Load it here first, so that a failure is reported with the loader's own
    // error. Do not load it earlier: `--help` must work without the addon.
    const { loadNative } = await import('../base/native.js')
    loadNative()
    const temporaryDirectory = await mkdtemp(join(tmpdir(), 'bhyve-'))
    try {
      const runDirectory =
        plan.runDirectory === '' ? join(temporaryDirectory, 'run') : resolve(plan.runDirectory)
      await mkdir(workingDirectoryOf(temporaryDirectory))
      const settings = settingsOfProcesses(plan, runDirectory, temporaryDirectory)
      await makeRunDirectories(runDirectory, settings)
      return new ProcessGroup(await launchAll(settings), runDirectory, temporaryDirectory)
    } catch (error) {
      await rm(temporaryDirectory, { recursive: true, force: true })
      throw error
    }
  }

  /** The fault files of the VMs whose process runs. */
  get faultFiles(): string[] {
    const running = this.processes.filter((process) => !process.hasEnded)
    return running.flatMap(({ vms }) => vms.map(({ faultFile }) => faultFile))
  }

  /** Kills the processes and removes their temporary directory. Can be called several times. */
  stop(): Promise<void> {
    this.#stopped ??= this.#stop()
    return this.#stopped
  }

  async #stop(): Promise<void> {
    await Promise.all(this.processes.map((process) => process.stop()))
    await rm(this.#temporaryDirectory, { recursive: true, force: true })
  }
}

function settingsOfProcesses(
  { processes, outlivesSuspend }: StartPlan,
  runDirectory: string,
  temporaryDirectory: string,
): ProcessSettings[] {
  let count = 0
  const settings = (vm: VmSettings): ServedVm => ({
    ...vm,
    runDirectory: vm.runDirectory === '' ? runDirectory : resolve(vm.runDirectory),
    // Not named after the VM, because its name can be too long for a suffix.
    faultFile: join(temporaryDirectory, `fault-${String(count++)}`),
  })
  return processes.map((vms) => ({ vms: vms.map(settings), outlivesSuspend, temporaryDirectory }))
}

async function makeRunDirectories(common: string, processes: readonly ProcessSettings[]): Promise<void> {
  const own = processes.flatMap(({ vms }) => vms.map(({ runDirectory }) => runDirectory))
  for (const directory of new Set([common, ...own])) await mkdir(directory, { recursive: true, mode: 0o700 })
}

/** Starts all processes, or none. */
async function launchAll(processes: readonly ProcessSettings[]): Promise<SimulatorProcess[]> {
  const launched = await Promise.allSettled(processes.map(launch))
  const running = launched.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []))
  const failure = launched.find((result) => result.status === 'rejected')
  if (failure === undefined) return running
  await Promise.all(running.map((process) => process.stop()))
  throw failure.reason
}
