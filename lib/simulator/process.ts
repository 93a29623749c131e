/**
 * Entry point of the simulator process. It reads its settings as one line of JSON from standard input. The parent keeps
 * this pipe open until it ends. The process writes one line of JSON to standard output: that it listens, or why it
 * cannot.
 */
import { readSync, rmSync, writeSync } from 'node:fs'
import { exitSoon } from './destroyed.js'
import { useDisks } from './disk_counter.js'
import { FaultInjection } from './fault_injection.js'
import { SyntheticMemory } from './guest.js'
import { listenFor } from './listener.js'
import { loadSimulatorNative, type SimulatorNative } from './native_calls.js'
import type { VmSettings } from './settings.js'
import { shapeOf } from './simulator_options.js'
import { Reactor } from './reactor.js'
import { freshState } from './sections.js'
import { serve } from './server.js'

/** A VM of this process. */
export interface ServedVm extends VmSettings {
  /** The parent replaces the fault through this file. */
  faultFile: string
}

/** The line on standard input. */
export interface ProcessSettings {
  vms: readonly ServedVm[]
  /** The process runs on after the suspend of one of its VMs. */
  outlivesSuspend: boolean
  /** Contains the working directory of this process. The process removes it when its parent has ended. */
  temporaryDirectory: string
}

/** The line on standard output. */
export type ProcessReport = { readonly listening: true } | { readonly error: string }

const standardInput = 0
const standardOutput = 1
const lineFeed = 0x0a

function main(): void {
  const settings = JSON.parse(readLine()) as ProcessSettings
  startServing(settings).run()
  // The other processes of a fleet remove it at the same time.
  rmSync(settings.temporaryDirectory, { recursive: true, force: true, maxRetries: 10 })
  process.exit(0)
}

function startServing(settings: ProcessSettings): Reactor {
  try {
    const native = loadSimulatorNative()
    const reactor = new Reactor(native, standardInput)
    for (const vm of settings.vms) serveVm(reactor, native, vm, settings.outlivesSuspend)
    report({ listening: true })
    return reactor
  } catch (error) {
    report({ error: error instanceof Error ? error.message : String(error) })
    process.exit(1)
  }
}

function serveVm(
  reactor: Reactor,
  native: SimulatorNative,
  settings: ServedVm,
  outlivesSuspend: boolean,
): void {
  const { vm, cpus, devices, dialect, writeRate } = settings
  const { memory, ...used } = useDisks(reactor, new SyntheticMemory(vm, settings), settings.disks)
  const state = freshState({ vm, shape: shapeOf(dialect), cpus, devices })
  const faults = new FaultInjection(native, settings.fault, settings.faultFile)
  const guest = { vm, cpus, state, memory, dialect, writeRate, faults, ...used, log: () => undefined }
  const server = serve(native, listenFor(native, settings, vm), guest, function* () {
    if (outlivesSuspend) return
    yield* exitSoon(settings.suspendExitCode, settings.suspendExitDelayMs)
  })
  reactor.add(server)
}

// The parent sends only this line.
function readLine(): string {
  const parts: Buffer[] = []
  const chunk = Buffer.alloc(64 * 1024)
  for (;;) {
    const length = readSync(standardInput, chunk)
    parts.push(Buffer.from(chunk.subarray(0, length)))
    if (length === 0 || chunk[length - 1] === lineFeed) return Buffer.concat(parts).toString()
  }
}

function report(line: ProcessReport): void {
  writeSync(standardOutput, `${JSON.stringify(line)}\n`)
}

main()
