/** Diagnoses the host: bhyve and kernel, directories, file systems, VMs, and what waits to be recovered. */
import { loadNative } from '../base/native.js'
import { CheckpointError, isExhausted, toCheckpointError } from '../base/errors.js'
import type { Finding } from '../base/finding_types.js'
import { assertRestorablePath, memorySuffix } from '../base/names.js'
import type { VirtualMachine } from '../base/types.js'
import { assertRequestFits, dialectOfSystem, type System } from '../bhyve/dialects.js'
import type { Target } from '../bhyve/locate.js'
import type { PeerMemory } from '../bhyve/peer_memory.js'
import { describeVm } from '../bhyve/virtual_machines.js'
import type { DirectoryReport } from '../diagnosis/directory_report.js'
import {
  blockCloningFindings,
  checkpointDirectoryFindings,
  compressionFindings,
  fileSystemFindings,
  memoryStageFindings,
  runDirectoryFindings,
} from '../diagnosis/findings/directory_findings.js'
import { ofVm, ok, problem, warning } from '../diagnosis/findings/finding.js'
import {
  dialectFindings,
  supportFindings,
  systemFindings,
  vmmFindings,
} from '../diagnosis/findings/host_findings.js'
import {
  longPathFindings,
  machineFindings,
  rejectedFindings,
  withoutSocketFindings,
} from '../diagnosis/findings/machine_findings.js'
import { spaceFindings, storeFindings } from '../diagnosis/findings/store_findings.js'
import type { HostFacts } from '../diagnosis/host_facts.js'
import { type Mount, mountOf } from '../diagnosis/mounts.js'
import { snapshotSupport } from '../diagnosis/snapshot_support.js'
import type { StoreReport, VmDirectory } from '../diagnosis/store_report.js'
import type { Store } from '../store/store.js'
import { longestRequestPath } from '../store/paths.js'
import type { VmJobs } from './jobs.js'

const storesPerJob = 16

export interface DiagnosisContext {
  store: Store
  vmJobs: VmJobs
  target: Omit<Target, 'vm'>
  system: System
  peers: PeerMemory
  facts: HostFacts
  memoryStage: { directory: string } | undefined
  /** Why this runtime does not support every call. Undefined for Node. */
  runtimeFault: string | undefined
}

/** Changes nothing. Connects once to each VM whose dialect allows it, as `listVirtualMachines` does. */
export async function diagnose(context: DiagnosisContext): Promise<Finding[]> {
  const addon = addonFindings(context)
  const host = hostFindings(context)
  // Without the addon there are no threads, and nothing else can be inspected.
  if (addon.some(({ level }) => level === 'problem')) return [...addon, ...(await host)]
  const directories = await directoryFindings(context)
  const isOpen = directories.some(({ code }) => code === 'checkpoint-directory-open')
  const memoryStage = await memoryFindings(context)
  return [...addon, ...(await host), ...directories, ...memoryStage, ...(await vmFindings(context, isOpen))]
}

function addonFindings({ runtimeFault }: DiagnosisContext): Finding[] {
  const runtime = `${process.release.name} ${process.version}`
  try {
    loadNative()
    const loaded = ok('addon-loaded', `the native addon is loaded (${runtime})`)
    if (runtimeFault === undefined) return [loaded]
    return [loaded, warning('runtime-limited', `some calls are not supported: ${runtimeFault}`, 'Use Node')]
  } catch (error) {
    const { message } = toCheckpointError(error, 'Loading the native addon')
    const [cause = message, advice = 'Build the addon'] = message.split(/(?=Build the addon: )/)
    return [problem('addon-unavailable', cause.replace(/\. $/, ''), advice)]
  }
}

async function hostFindings({ system, facts }: DiagnosisContext): Promise<Finding[]> {
  const known = [...systemFindings(system), ...dialectFindings(system)]
  if (system.platform !== 'freebsd') return known
  // The module itself makes these variables, whether or not a VM runs.
  const [support, module] = await Promise.all([snapshotSupport(facts), facts.sysctl('hw.vmm')])
  return [...known, ...supportFindings(support), ...vmmFindings(module !== undefined)]
}

async function directoryFindings({ store, vmJobs, target, facts }: DiagnosisContext): Promise<Finding[]> {
  const { rootDirectory } = store
  const paths = [target.runDirectory, ...(rootDirectory === undefined ? [] : [rootDirectory])]
  const [run, root] = await vmJobs.inspectDirectories(paths)
  const found = run === undefined ? [] : runDirectoryFindings(run, target.trustedUids)
  if (root === undefined) return found
  return [
    ...found,
    ...checkpointDirectoryFindings(root, 'directories', target.trustedUids),
    ...(await mountFindings([root], facts)),
  ]
}

async function memoryFindings({ store, memoryStage }: DiagnosisContext): Promise<Finding[]> {
  if (memoryStage === undefined) return []
  const { directory } = memoryStage
  const stage = await store.jobs.inspectMemoryStage(directory).catch((error: unknown) => {
    if (isExhausted(error)) throw error
    return toCheckpointError(error, 'Opening the memory stage')
  })
  return memoryStageFindings(directory, stage)
}

async function mountFindings(reports: readonly DirectoryReport[], facts: HostFacts): Promise<Finding[]> {
  const [mounts, cloning] = await Promise.all([facts.mounts(), facts.sysctl('vfs.zfs.bclone_enabled')])
  const each = reports.map(async (report) => [
    ...fileSystemFindings(report, mounts),
    ...blockCloningFindings(report, mounts, cloning),
    ...compressionFindings(report, await compressionOf(report, mounts, facts)),
  ])
  const findings = (await Promise.all(each)).flat()
  const isFirst = ({ message }: Finding, index: number): boolean =>
    findings.findIndex((one) => one.message === message) === index
  return findings.filter(isFirst)
}

async function compressionOf(
  { existing }: DirectoryReport,
  mounts: readonly Mount[],
  facts: HostFacts,
): Promise<string | undefined> {
  return mountOf(existing, mounts)?.type === 'zfs' ? facts.compression(existing) : undefined
}

/** `isOpen`: others can reach the directories of the VMs. */
async function vmFindings(context: DiagnosisContext, isOpen: boolean): Promise<Finding[]> {
  const { store, vmJobs, target, facts } = context
  const [machines, stored, inKernel] = await Promise.all([
    machinesOf(context),
    store.knownVms(),
    vmJobs.namesIn(target.vmmDirectory),
  ])
  const vms = [...new Set([...machines.keys(), ...stored])].sort()
  const directories = vms.map((vm) => ({ vm, directory: store.directoryOf(vm) }))
  const reports = await reportsOf(vmJobs, directories)
  const reservations = await store.jobs.reservedSpace(directories.map(({ directory }) => directory))
  const reservedOn = (device: string | undefined): number =>
    reservations.filter((one) => one.device === device).reduce((sum, { bytes }) => sum + bytes, 0)
  const ofEach = reports.flatMap((report) => {
    const machine = machines.get(report.vm)
    const isRunning = machine?.state === 'running' || machine?.state === 'paused'
    return ofVm(report.vm, [
      ...(machine === undefined ? [] : [...machine.findings, ...pathFindings(context, report)]),
      ...permissionFindings(context, report, isOpen),
      ...storeFindings(report, isRunning),
      ...(machine === undefined ? [] : spaceFindings(report, reservedOn(report.directory.device))),
    ])
  })
  const others = store.ownsDirectories
    ? []
    : await mountFindings(
        reports.map(({ directory }) => directory),
        facts,
      )
  const missing = inKernel.filter((vm) => !machines.has(vm))
  return [
    ...others,
    ...ofEach,
    ...missing.flatMap((vm) => ofVm(vm, withoutSocketFindings(target.runDirectory))),
  ]
}

/** The directories of this library's own layout are reported only if others can reach their contents. */
function permissionFindings(
  { store, target }: DiagnosisContext,
  { directory }: StoreReport,
  isOpen: boolean,
): Finding[] {
  const findings = checkpointDirectoryFindings(directory, 'checkpoints', target.trustedUids)
  if (!store.ownsDirectories) return findings
  return findings.filter(({ code }) => isOpen && code === 'checkpoint-directory-open')
}

/** One job for all stores would occupy a thread, which saves need, for as long as the stores of all VMs take. */
async function reportsOf(vmJobs: VmJobs, directories: readonly VmDirectory[]): Promise<StoreReport[]> {
  const starts = directories.map((_, index) => index).filter((index) => index % storesPerJob === 0)
  const jobs = starts.map((at) => vmJobs.inspectStores(directories.slice(at, at + storesPerJob)))
  return (await Promise.all(jobs)).flat()
}

interface Machine {
  state: VirtualMachine['state']
  findings: Finding[]
}

async function machinesOf({ vmJobs, target, peers, facts }: DiagnosisContext): Promise<Map<string, Machine>> {
  const found = await vmJobs.findSockets(target).catch((error: unknown) => {
    // The finding on the run directory has the reason.
    if (error instanceof CheckpointError && error.code === 'ERR_PERMISSION') return []
    throw error
  })
  const waiting = await facts.waitingConnections()
  const machines = found.map(async (one): Promise<[string, Machine]> => {
    const { vm } = one
    if (one.rejected !== undefined) {
      const error = await vmJobs.locateSocket({ ...target, vm }).then(() => undefined, asCheckpointError)
      return [vm, { state: 'unknown', findings: error === undefined ? [] : rejectedFindings(error) }]
    }
    // Otherwise each run of a program would add a connection to the backlog of a paused VM, until nobody can connect.
    const mayConnect = !one.sockets.some(({ socketPath }) => waiting.has(socketPath))
    const machine = describeVm(one, target, peers, mayConnect)
    const isKnowable = one.sockets.some(({ kind }) => kind === 'nvlist')
    return [vm, { state: machine.state, findings: machineFindings(machine, isKnowable) }]
  })
  return new Map(await Promise.all(machines))
}

function asCheckpointError(error: unknown): CheckpointError {
  return toCheckpointError(error, 'Locating the socket of a VM')
}

/** A checkpoint of the default name must have a path that bhyve can open. */
function pathFindings(
  { system, target }: DiagnosisContext,
  { vm, directory: { path } }: StoreReport,
): Finding[] {
  const dialect = target.dialect === 'auto' ? dialectOfSystem(system) : target.dialect
  try {
    assertRestorablePath(`${path}/checkpoint${memorySuffix}`, vm, 'checkpoint')
    if (dialect !== undefined) assertRequestFits(dialect, longestRequestPath(path), vm)
    return []
  } catch (error) {
    return longPathFindings(asCheckpointError(error))
  }
}
