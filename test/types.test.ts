/** The public types, as the compiler of a caller sees them. `npm run types` fails if one of them changes. */
import { expectTypeOf } from 'expect-type'
import t from 'tap'
import * as main from 'bhyve-checkpoint'
import type {
  AbortError,
  CallOptions,
  Checkpoint,
  CheckpointBlocker,
  CheckpointClient,
  CheckpointError,
  CheckpointPlan,
  CheckpointWarning,
  ClientOptions,
  CreatedCheckpoint,
  CreateOptions,
  DestroyAllOptions,
  DiskProvider,
  DiskSelection,
  ErrorCode,
  Finding,
  FindingCode,
  FrozenGuest,
  InFlightCall,
  Layout,
  ListAllOptions,
  ListedCheckpoint,
  ListVirtualMachinesOptions,
  Operation,
  OperationEvent,
  OperationResult,
  OperationResults,
  PauseOptions,
  PlanCheckpointOptions,
  Problem,
  ProblemCode,
  Progress,
  ProgressPhase,
  PrunedVm,
  PrunePolicy,
  PruneResult,
  RestoreOptions,
  RestorePlan,
  SuspendedCheckpointOptions,
  SuspendOptions,
  VerificationReport,
  VerifyOptions,
  VirtualMachine,
} from 'bhyve-checkpoint'
import * as simulator from 'bhyve-checkpoint/simulator'
import type { Fault, FleetOptions, SimulatorOptions } from 'bhyve-checkpoint/simulator'

t.test('the packages export exactly the documented names', async (t) => {
  const named = ['AbortError', 'CheckpointError', 'cbsdLayout', 'createCheckpoint', 'createClient']
  t.same(Object.keys(main).sort(), [
    ...named,
    'destroyAll',
    'disksOf',
    'errorCodes',
    'fileDisks',
    'listCheckpoints',
    'operations',
    'zfsDisks',
  ])
  t.same(Object.keys(simulator).sort(), [
    'SimulatedBhyve',
    'SimulatedFleet',
    'clearFault',
    'setFault',
    'simulatedBhyve',
  ])
})

t.test('the calls have the documented parameters and results', async (t) => {
  type Call<K extends keyof CheckpointClient> = CheckpointClient[K]
  expectTypeOf<Call<'diagnose'>>().toEqualTypeOf<(options?: CallOptions) => Promise<readonly Finding[]>>()
  expectTypeOf<Call<'planCheckpoint'>>().toEqualTypeOf<
    (vm: string, options?: PlanCheckpointOptions) => Promise<CheckpointPlan>
  >()
  expectTypeOf<CheckpointPlan['blockers'][number]['code']>().toEqualTypeOf<CheckpointBlocker>()
  expectTypeOf<CheckpointPlan['warnings'][number]['code']>().toEqualTypeOf<CheckpointWarning>()
  expectTypeOf<Finding['code']>().toEqualTypeOf<FindingCode>()
  expectTypeOf(main.createClient).toEqualTypeOf<(options?: ClientOptions) => CheckpointClient>()
  expectTypeOf<Call<'createCheckpoint'>>().parameters.toEqualTypeOf<[vm: string, options?: CreateOptions]>()
  expectTypeOf<NonNullable<CreateOptions['onFrozen']>>().toEqualTypeOf<
    (frozen: FrozenGuest) => void | Promise<void>
  >()
  expectTypeOf<FrozenGuest>().toEqualTypeOf<{ vm: string; id: string; pid?: number; signal: AbortSignal }>()
  expectTypeOf<Call<'createCheckpoint'>>().returns.resolves.toEqualTypeOf<CreatedCheckpoint>()
  expectTypeOf<CreatedCheckpoint['stage']>().toEqualTypeOf<'memory' | 'disk' | undefined>()
  expectTypeOf<CreatedCheckpoint>().toExtend<Checkpoint>()
  expectTypeOf<Call<'suspend'>>().parameter(1).toEqualTypeOf<Omit<CreateOptions, 'poweroff'> | undefined>()
  expectTypeOf<Call<'suspendedCheckpoint'>>().returns.resolves.toEqualTypeOf<Checkpoint | undefined>()
  expectTypeOf<Call<'listCheckpoints'>>().returns.resolves.toEqualTypeOf<ListedCheckpoint[]>()
  expectTypeOf<Call<'getCheckpoint'>>().returns.resolves.toEqualTypeOf<Checkpoint>()
  expectTypeOf<Call<'destroyCheckpoint'>>().returns.toEqualTypeOf<Promise<void>>()
  expectTypeOf<Call<'destroyAll'>>().returns.resolves.toEqualTypeOf<string[]>()
  expectTypeOf<Call<'verifyCheckpoint'>>().returns.resolves.toEqualTypeOf<VerificationReport>()
  expectTypeOf<Call<'pinCheckpoint'>>().parameters.toEqualTypeOf<
    [vm: string, name: string, pinned?: boolean, options?: CallOptions]
  >()
  expectTypeOf<Call<'labelCheckpoint'>>().toEqualTypeOf<
    (
      vm: string,
      name: string,
      labels: Readonly<Record<string, string | null>>,
      options?: CallOptions,
    ) => Promise<void>
  >()
  expectTypeOf<Call<'pruneCheckpoints'>>().parameter(1).toEqualTypeOf<PrunePolicy>()
  expectTypeOf<Call<'pruneCheckpoints'>>().returns.resolves.toEqualTypeOf<{
    removed: string[]
    kept: string[]
    freedBytes: number
  }>()
  expectTypeOf<Call<'pruneCheckpoints'>>().returns.resolves.toEqualTypeOf<PruneResult>()
  expectTypeOf<Call<'pruneAll'>>().parameters.toEqualTypeOf<[policy: PrunePolicy, options?: CallOptions]>()
  expectTypeOf<Call<'pruneAll'>>().returns.resolves.toEqualTypeOf<PrunedVm[]>()
  expectTypeOf<PrunedVm['error']>().toEqualTypeOf<CheckpointError | undefined>()
  expectTypeOf<Call<'listAllCheckpoints'>>().parameter(0).toEqualTypeOf<ListAllOptions | undefined>()
  expectTypeOf<Call<'listAllCheckpoints'>>().returns.toEqualTypeOf<AsyncIterable<ListedCheckpoint>>()
  expectTypeOf<Call<'inFlight'>>().returns.toEqualTypeOf<InFlightCall[]>()
  expectTypeOf<Call<'idle'>>().parameter(0).toEqualTypeOf<CallOptions | undefined>()
  expectTypeOf<Call<'destroyAll'>>().parameter(1).toEqualTypeOf<DestroyAllOptions | undefined>()
  expectTypeOf<Call<'suspend'>>().parameter(1).toEqualTypeOf<SuspendOptions | undefined>()
  expectTypeOf<Call<'suspendedCheckpoint'>>()
    .parameter(1)
    .toEqualTypeOf<SuspendedCheckpointOptions | undefined>()
  expectTypeOf<Call<'pause'>>().parameter(1).toEqualTypeOf<PauseOptions | undefined>()
  expectTypeOf<Call<'resume'>>().parameter(1).toEqualTypeOf<PauseOptions | undefined>()
  expectTypeOf<Call<'listVirtualMachines'>>()
    .parameter(0)
    .toEqualTypeOf<ListVirtualMachinesOptions | undefined>()
  expectTypeOf<Call<'listStored'>>().returns.resolves.toEqualTypeOf<string[]>()
  expectTypeOf<Call<'listVirtualMachines'>>().returns.resolves.toEqualTypeOf<VirtualMachine[]>()
  expectTypeOf<Call<'planRestore'>>().returns.resolves.toEqualTypeOf<RestorePlan>()
  expectTypeOf<Call<'restore'>>().parameter(2).toEqualTypeOf<RestoreOptions | undefined>()
  expectTypeOf<Call<'restore'>>().returns.resolves.toExtend<{ pid: number; logFile: string }>()
  expectTypeOf<Call<'idle'>>().returns.toEqualTypeOf<Promise<void>>()
  expectTypeOf<CheckpointClient>().toExtend<AsyncDisposable>()
  type RestoredDisks = { keptDisks?: readonly string[]; clonedDisks?: readonly string[] }
  expectTypeOf<Call<'restore'>>().returns.resolves.toExtend<RestoredDisks>()
  type ZfsOptions = { datasets?: readonly string[] | undefined; args?: readonly string[] | undefined }
  expectTypeOf(main.zfsDisks).toEqualTypeOf<(options: ZfsOptions) => DiskSelection>()
  expectTypeOf(main.fileDisks).returns.toEqualTypeOf<DiskSelection>()
  expectTypeOf(main.disksOf).toEqualTypeOf<(args: readonly string[]) => Promise<DiskSelection[]>>()
  expectTypeOf(main.cbsdLayout).returns.toEqualTypeOf<Layout>()
  t.pass('the checks compiled')
})

t.test('the properties of results and options have the documented types', async (t) => {
  expectTypeOf<Checkpoint['createdAt']>().toEqualTypeOf<Date>()
  expectTypeOf<Checkpoint['restoredAt']>().toEqualTypeOf<Date | undefined>()
  expectTypeOf<Checkpoint['id']>().toEqualTypeOf<string>()
  expectTypeOf<Checkpoint['labels']>().toEqualTypeOf<Readonly<Record<string, string>>>()
  expectTypeOf<Checkpoint['dialect']>().toEqualTypeOf<'struct' | 'path' | 'descriptor' | undefined>()
  expectTypeOf<Checkpoint['host']>().toEqualTypeOf<
    { name: string; release: string; cpuModel: string } | undefined
  >()
  expectTypeOf<Checkpoint['restores']>().toEqualTypeOf<readonly { at: Date; again: boolean }[] | undefined>()
  expectTypeOf<CreateOptions['labels']>().toEqualTypeOf<Readonly<Record<string, string>> | undefined>()
  expectTypeOf<CheckpointError['retryable']>().toEqualTypeOf<boolean>()
  expectTypeOf<CheckpointError['toJSON']>().returns.toExtend<object>()
  expectTypeOf<CheckpointError['existing']>().toEqualTypeOf<
    { readonly id: string; readonly labels: Readonly<Record<string, string>> } | undefined
  >()
  expectTypeOf<AbortError['retryable']>().toEqualTypeOf<false>()
  expectTypeOf<Progress['totalBytes']>().toEqualTypeOf<number | undefined>()
  expectTypeOf<CheckpointError['code']>().toEqualTypeOf<ErrorCode>()
  expectTypeOf<CheckpointError['problems']>().toEqualTypeOf<readonly Problem[] | undefined>()
  expectTypeOf<CheckpointError['vmState']>().toEqualTypeOf<
    'running' | 'paused' | 'off' | 'unknown' | undefined
  >()
  expectTypeOf<VirtualMachine['state']>().toEqualTypeOf<'running' | 'paused' | 'off' | 'unknown'>()
  expectTypeOf<ClientOptions['dialect']>().toEqualTypeOf<
    'struct' | 'path' | 'descriptor' | 'auto' | undefined
  >()
  expectTypeOf<CreateOptions['disks']>().toEqualTypeOf<readonly DiskSelection[] | undefined>()
  expectTypeOf<ClientOptions['diskProviders']>().toEqualTypeOf<readonly DiskProvider[] | undefined>()
  expectTypeOf<RestoreOptions['disks']>().toEqualTypeOf<'rollback' | 'keep' | 'clone' | undefined>()
  expectTypeOf<RestoreOptions['as']>().toEqualTypeOf<string | undefined>()
  expectTypeOf<Checkpoint['disks']>().toEqualTypeOf<
    readonly { kind: string; path: string; snapshot: string }[] | undefined
  >()
  expectTypeOf<Checkpoint['argumentsRecorded']>().toEqualTypeOf<boolean | undefined>()
  expectTypeOf<CreateOptions['recordArguments']>().toEqualTypeOf<boolean | readonly string[] | undefined>()
  expectTypeOf<RestoreOptions['args']>().toEqualTypeOf<readonly string[] | undefined>()
  expectTypeOf<RestorePlan['displayArgs']>().toEqualTypeOf<readonly string[]>()
  expectTypeOf<SimulatorOptions['fault']>().toEqualTypeOf<Fault | undefined>()
  expectTypeOf<Fault['times']>().toEqualTypeOf<number | undefined>()
  expectTypeOf<FleetOptions['vms']>().toEqualTypeOf<readonly (string | SimulatorOptions)[]>()
  expectTypeOf<FleetOptions['processes']>().toEqualTypeOf<'shared' | 'separate' | undefined>()
  type Faulty = Pick<simulator.SimulatedBhyve, 'setFault' | 'clearFault'>
  expectTypeOf<simulator.SimulatedFleet>().toExtend<Faulty>()
  expectTypeOf<simulator.SimulatedFleet['member']>().toEqualTypeOf<(vm: string) => simulator.SimulatedBhyve>()
  expectTypeOf<Faulty['setFault']>().toEqualTypeOf<(fault: Fault) => Promise<void>>()
  expectTypeOf(simulator.setFault).toEqualTypeOf<(faultFile: string, fault: Fault) => Promise<void>>()
  t.pass('the checks compiled')
})

t.test('a call that can wait has a signal and a timeout', async (t) => {
  type Waiting =
    | DestroyAllOptions
    | SuspendedCheckpointOptions
    | PauseOptions
    | ListVirtualMachinesOptions
    | VerifyOptions
    | CreateOptions
    | RestoreOptions
  expectTypeOf<Waiting>().toExtend<CallOptions>()
  t.pass('the checks compiled')
})

t.test('the lists and the types of codes and operations have one source', async (t) => {
  expectTypeOf(main.errorCodes).items.toEqualTypeOf<ErrorCode>()
  expectTypeOf(main.operations).items.toEqualTypeOf<Operation>()
  expectTypeOf<keyof OperationResults>().toEqualTypeOf<Operation>()
  expectTypeOf<Problem['code']>().toEqualTypeOf<ProblemCode>()
  expectTypeOf<Progress['phase']>().toEqualTypeOf<ProgressPhase>()
  for (const list of [main.errorCodes, main.operations]) {
    t.ok(Object.isFrozen(list))
    t.equal(new Set(list).size, list.length)
  }
  t.ok(main.errorCodes.includes('ERR_INVALID_OPTION'))
})

t.test('the operation of an event narrows its type', async (t) => {
  const bytesOf = (event: OperationEvent): number => {
    if (event.operation === 'create') {
      expectTypeOf(event.checkpoint).toEqualTypeOf<string | undefined>()
      return event.result?.storedBytes ?? 0
    }
    if (event.operation === 'prune') {
      // @ts-expect-error: a prune is about a VM and not about one checkpoint
      t.equal(event.checkpoint, undefined)
      return event.result?.freedBytes ?? 0
    }
    return 0
  }
  expectTypeOf<OperationEvent<'restore'>['result']>().toEqualTypeOf<OperationResult<'restore'> | undefined>()
  expectTypeOf<OperationEvent['error']>().toEqualTypeOf<CheckpointError | main.AbortError | undefined>()
  t.equal(bytesOf({ operation: 'prune', vm: 'vm1', result: { count: 1, freedBytes: 5 } }), 5)
})

t.test('the state of a listed checkpoint narrows its type', async (t) => {
  const sizeOf = (listed: ListedCheckpoint): number => {
    if (listed.state !== 'complete') {
      expectTypeOf(listed.memoryBytes).toEqualTypeOf<number | undefined>()
      return 0
    }
    expectTypeOf(listed).toExtend<Checkpoint>()
    return listed.memoryBytes
  }
  t.equal(sizeOf({ state: 'damaged', vm: 'vm1', name: 'a', path: '/a', problems: [] }), 0)
})

t.test('every option accepts undefined and rejects values of a wrong type', async (t) => {
  const undefinedOptions: Required<CreateOptions> | CreateOptions = {
    name: undefined,
    poweroff: undefined,
    ifExists: undefined,
    signal: undefined,
    timeout: undefined,
    stallTimeout: undefined,
    onProgress: undefined,
    labels: undefined,
    fsync: undefined,
    digest: undefined,
    sparsify: undefined,
    memoryBytes: undefined,
    disks: undefined,
    onFrozen: undefined,
    freezeTimeout: undefined,
    recordArguments: undefined,
  }
  const client = main.createClient({
    runDirectory: undefined,
    checkpointDirectory: undefined,
    dialect: undefined,
    diskProviders: undefined,
  })
  t.ok(undefinedOptions)
  // @ts-expect-error: a timeout is a number of milliseconds
  await t.rejects(client.createCheckpoint('vm1', { timeout: '1s' }), { code: 'ERR_INVALID_OPTION' })
  // @ts-expect-error: suspend always powers off
  await t.rejects(client.suspend('vm1', { poweroff: true }), { code: 'ERR_INVALID_OPTION' })
  // @ts-expect-error: a policy has no such rule
  await t.rejects(client.pruneCheckpoints('vm1', { keepAll: true }), { code: 'ERR_INVALID_OPTION' })
  expectTypeOf<RestoreOptions['env']>().toEqualTypeOf<Readonly<Record<string, string>> | undefined>()
  // @ts-expect-error: an image file is not a selection
  await t.rejects(client.createCheckpoint('vm1', { disks: ['/vms/vm1.img'] }), { code: 'ERR_INVALID_OPTION' })
  // @ts-expect-error: there is no such decision
  await t.rejects(client.restore('vm1', 'a', { args: ['vm1'], disks: 'back' }), {
    code: 'ERR_INVALID_OPTION',
  })
  // @ts-expect-error: arguments are strings
  await t.rejects(client.restore('vm1', 'suspend', { args: [1] }), { code: 'ERR_INVALID_OPTION' })
  // @ts-expect-error: arguments are an array
  await t.rejects(client.suspend('vm1', { recordArguments: 'vm1' }), { code: 'ERR_INVALID_OPTION' })
  t.throws(() => {
    // @ts-expect-error: there is no such dialect
    main.createClient({ dialect: 'morse' })
  })
})
