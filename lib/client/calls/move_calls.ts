/** moveVirtualMachine, receiveVirtualMachine and resolveMove. */
import { Duplex } from 'node:stream'
import {
  assertBoolean,
  assertCallback,
  assertCallOptions,
  assertEnvironment,
  assertMilliseconds,
  assertWords,
  invalid,
} from '../../base/assertions.js'
import { zfsDisks } from '../../disks/selections.js'
import type { Cancellation } from '../../base/cancellation.js'
import type {
  MoveOptions,
  MoveReport,
  ReceivedMove,
  ReceiveOptions,
  ResolveMoveOptions,
} from '../../base/move_types.js'
import { assertCheckpointName, assertVmName } from '../../base/names.js'
import { membersOf } from '../../base/union_members.js'
import { loadNative } from '../../base/native.js'
import { isMoveText } from '../../checkpoint/move_record.js'
import type { MoveArchive } from '../../operations/move/context.js'
import type { SendContext } from '../../operations/move/send.js'
import type { RestoreContext } from '../../operations/restore/context.js'
import { checkedFor, type Session } from '../session.js'
import type { DiagnosisCalls } from './diagnosis_calls.js'
import type { RestoringCalls } from './restoring_calls.js'
import type { SavingCalls } from './saving_calls.js'

const defaultSilenceMs = 60_000

const moveOptions = membersOf<Exclude<keyof MoveOptions, 'signal' | 'timeout'>>({
  host: true,
  connect: true,
  args: true,
  name: true,
  disks: true,
  dryRun: true,
  anyCpu: true,
  bhyve: true,
  silenceTimeout: true,
  onProgress: true,
})
const receiveOptions = membersOf<Exclude<keyof ReceiveOptions, 'signal' | 'timeout'>>({
  bhyve: true,
  env: true,
  silenceTimeout: true,
})

/** For messages: the state after a cancel. */
const outcomes = {
  moving: {
    beforeStart: 'nothing was changed',
    afterStart: 'the move is aborted (client.idle() waits for that)',
  },
  receiving: {
    beforeStart: 'nothing was received',
    afterStart: 'what was begun is finished (client.idle() waits for that)',
  },
  resolving: { beforeStart: 'nothing was changed', afterStart: 'the move may still be resolved' },
} as const

/** Loaded at the first move, so that other programs do not wait for it. */
async function loadMove() {
  const [connection, context, receiving, sending] = await Promise.all([
    import('../../operations/move/connection.js'),
    import('../../operations/move/context.js'),
    import('../../operations/move/receive.js'),
    import('../../operations/move/send.js'),
  ])
  return { ...connection, ...context, ...receiving, ...sending }
}

export class MoveCalls {
  readonly #session: Session
  readonly #saving: SavingCalls
  readonly #restoring: RestoringCalls
  readonly #diagnosis: DiagnosisCalls

  constructor(
    session: Session,
    calls: { saving: SavingCalls; restoring: RestoringCalls; diagnosis: DiagnosisCalls },
  ) {
    this.#session = session
    this.#saving = calls.saving
    this.#restoring = calls.restoring
    this.#diagnosis = calls.diagnosis
  }

  async moveVirtualMachine(vm: string, options: MoveOptions): Promise<MoveReport> {
    checkedFor(vm, () => assertMoveOptions(vm, options))
    const { host, connect, name, dryRun = false, anyCpu = false, disks = 'shared' } = options
    const { silenceTimeout = defaultSilenceMs } = options
    const doing = `Moving VM '${vm}' to host '${host}'`
    this.#session.assertCan('create', doing, vm, name ?? '')
    const subject = { operation: 'move', doing, vm, ...(name !== undefined && { checkpoint: name }) } as const
    const call = { ...subject, options, outcome: outcomes.moving, once: true }
    return this.#session.call(call, async (cancellation) => {
      const controller = new AbortController()
      const forget = cancellation.onCancel((error) => controller.abort(error))
      try {
        const { MoveConnection, archiveOf, send } = await loadMove()
        using connection = new MoveConnection(await connect(controller.signal), silenceTimeout)
        const archive = archiveOf(this.#session.store, cancellation)
        const context = this.#sendContext(vm, options, archive, cancellation)
        const settings = { vm, host, dryRun, anyCpu, disks, silenceMs: silenceTimeout }
        return await send(context, settings, connection)
      } finally {
        forget()
      }
    })
  }

  #sendContext(
    vm: string,
    options: MoveOptions,
    archive: MoveArchive,
    cancellation: Cancellation,
  ): SendContext {
    const { args, name, bhyve, disks, onProgress } = options
    const restoring = this.#context(vm, cancellation)
    return {
      restoring,
      archive,
      departure: {
        ...{ vm, name },
        args: args && { words: args, directory: process.cwd() },
        planSuspend: (planned) => this.#diagnosis.planCheckpoint(vm, { name: planned, poweroff: true, args }),
      },
      suspend: (to, words, disksIn) =>
        this.#saving.suspend(vm, {
          ...{ name: to, recordArguments: words ?? true, onProgress },
          ...(disksIn.length > 0 && { disks: [zfsDisks({ args: disksIn })] }),
        }),
      resume: (from) =>
        this.#restoring.restore(vm, from, { bhyve, ...(disks === 'send' && { disks: 'keep' as const }) }),
      onProgress,
    }
  }

  async receiveVirtualMachine(connection: Duplex, options: ReceiveOptions = {}): Promise<ReceivedMove> {
    if (!(connection instanceof Duplex)) throw invalid('The connection must be a Duplex stream', connection)
    assertCallOptions(options, receiveOptions)
    const { silenceTimeout = defaultSilenceMs, bhyve, env } = options
    assertMilliseconds(silenceTimeout, 'silenceTimeout', 1)
    assertAbsolute(bhyve)
    if (env !== undefined) assertEnvironment(env)
    const call = {
      operation: 'receive',
      doing: 'Receiving a VM',
      options,
      outcome: outcomes.receiving,
    } as const
    return this.#session.call(call, async (cancellation) => {
      const { MoveConnection, archiveOf, receive } = await loadMove()
      using end = new MoveConnection(connection, silenceTimeout)
      const forget = cancellation.onCancel((error) => end.interrupt(error))
      try {
        const archive = archiveOf(this.#session.store, cancellation)
        const restoring = (vm: string): RestoreContext => this.#context(vm, cancellation)
        const received = await receive({ restoring, archive, starting: { bhyve, env } }, end)
        if (received.vm === undefined) return received
        // A copy that was discarded may have had snapshots.
        return await this.#session.snapshots.after(received.vm, Promise.resolve(received))
      } finally {
        forget()
      }
    })
  }

  async resolveMove(vm: string, name: string, options: ResolveMoveOptions): Promise<void> {
    assertVmName(vm)
    assertCheckpointName(name, vm)
    assertCallOptions(options, ['runs'])
    const { runs } = options
    if (!['here', 'elsewhere'].includes(runs))
      throw invalid("The option 'runs' must be 'here' or 'elsewhere'", runs)
    const { store } = this.#session
    const doing = `Resolving the move of checkpoint '${name}' of VM '${vm}'`
    const call = { operation: 'resolveMove', doing, vm, checkpoint: name, options } as const
    return this.#session.call({ ...call, outcome: outcomes.resolving }, async (cancellation) => {
      const jobs = store.jobsOf(cancellation)
      const directory = store.directoryOf(vm)
      const { descriptors } = await jobs.beginRestore(directory, name)
      try {
        await jobs.resolveMove(directory, vm, name, runs, new Date().toISOString())
      } finally {
        await store.jobs.endRestore(directory, descriptors.restoreLock).catch(() => undefined)
        loadNative().close(descriptors.restoreLock)
      }
    })
  }

  #context(vm: string, cancellation: Cancellation): RestoreContext {
    const { store, vmJobs, disks, environment, settings } = this.#session
    const { peers, host, system, defaultRunDirectory } = environment
    const target = { ...settings.target, vm }
    return { store, vmJobs, disks, target, peers, host, system, cancellation, defaultRunDirectory }
  }
}

function assertMoveOptions(vm: string, options: MoveOptions): void {
  assertVmName(vm)
  assertCallOptions(options, moveOptions)
  const { host, connect, args, name, dryRun = false, anyCpu = false, bhyve, silenceTimeout = 1 } = options
  const { disks = 'shared' } = options
  if (!isMoveText(host) || host.length > 255)
    throw invalid("The option 'host' must be the name of a host", host)
  if (typeof connect !== 'function') throw invalid("The option 'connect' must be a function", connect)
  if (args !== undefined) assertWords(args, "The option 'args' must be an array of strings without NUL")
  if (name !== undefined) assertCheckpointName(name, vm)
  if (!['shared', 'send'].includes(disks))
    throw invalid("The option 'disks' must be 'shared' or 'send'", disks)
  assertBoolean(dryRun, 'dryRun')
  assertBoolean(anyCpu, 'anyCpu')
  assertAbsolute(bhyve)
  assertMilliseconds(silenceTimeout, 'silenceTimeout', 1)
  assertCallback(options.onProgress)
}

function assertAbsolute(bhyve: unknown): void {
  if (bhyve !== undefined && (typeof bhyve !== 'string' || !bhyve.startsWith('/') || bhyve.includes('\0')))
    throw invalid("The option 'bhyve' must be the absolute path of a file", bhyve)
}
