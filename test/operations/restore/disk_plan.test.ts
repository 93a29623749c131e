/** Blockers and warnings of a restore plan that concern disk snapshots and forks. */
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import type { CheckpointClient, RestoreOptions, RestorePlan } from 'bhyve-checkpoint'
import { createClientIn } from '../../../dist/client/client.js'
import { hostEnvironment } from '../../../dist/client/environment.js'
import { PeerMemory } from '../../../dist/bhyve/peer_memory.js'
import { copyingDisks, type CopyingOptions } from '../../support/disk_world.js'
import { rejection, scratch, tree } from '../../support/index.js'
import { host, memoryBytes, putSet } from '../../support/sets.js'

const small = ['-c2', '-m4M']
/** Whole seconds, because `utimes` may round others. */
const memoryModifiedMs = 1_700_000_000_000
const id = '01234567-89ab-4def-8123-456789abcdef'

interface Plan {
  root: string
  /** `a.img` (slot 3) and `b.img` (slot 5:1), both with snapshots and newer than the checkpoint. */
  args: string[]
  images: string[]
  client: (options?: CopyingOptions) => CheckpointClient
  put: (manifest?: Record<string, unknown>) => void
  plan: (options?: Partial<RestoreOptions>, copying?: CopyingOptions) => Promise<RestorePlan>
}

function planning(t: Test): Plan {
  const root = scratch(t)
  const images = ['a', 'b'].map((name) => path.join(root, `${name}.img`))
  for (const image of images) {
    fs.writeFileSync(image, '')
    fs.writeFileSync(`${image}@x`, '')
    fs.utimesSync(image, 4e9, 4e9)
  }
  const [a = '', b = ''] = images
  const args = [...small, '-s', `3,virtio-blk,${a}`, '-s', `5:1,virtio-blk,${b}`, 'vm1']
  const disks = [{ kind: 'copy', disks: images.map((image) => ({ path: image, snapshot: `${image}@x` })) }]
  const client: Plan['client'] = (options = {}) => {
    const quiet = {
      host: () => ({ ...host, freeMemoryBytes: 2 * memoryBytes }),
      vmmDirectory: '/nonexistent',
    }
    const diskProviders = options.kind === 'none' ? [] : [copyingDisks(path.join(root, 'calls'), options)]
    return createClientIn(
      { ...hostEnvironment, ...quiet, peers: new PeerMemory() },
      { checkpointDirectory: path.join(root, 'c'), runDirectory: path.join(root, '.run'), diskProviders },
    )
  }
  const put: Plan['put'] = (manifest = {}) =>
    putSet(path.join(root, 'c/vm1'), 'x', {
      manifest: { version: 2, id, disks, memoryModifiedMs, ...manifest },
    })
  put()
  const plan: Plan['plan'] = (options = {}, copying = {}) =>
    client(copying).planRestore('vm1', 'x', { args, ...options })
  return { root, args, images, client, put, plan }
}

const codes = ({ blockers, warnings }: RestorePlan): string[][] =>
  [blockers, warnings].map((found) => found.map(({ code }) => code))

const fork = { as: 'vm2', disks: 'clone' } as const

t.test('planRestore: the caller must decide about disks with snapshots', async (t) => {
  const { plan, args, images } = planning(t)
  const undecided = await plan()
  t.strictSame(codes(undecided), [['disks-undecided'], ['disks-moved-on']])
  t.match(undecided.blockers[0]?.message, /a\.img.*b\.img.*'rollback'.*'keep'.*'clone'/)
  t.strictSame(codes(await plan({ disks: 'keep' })), [[], ['disks-moved-on']])
  t.strictSame(codes(await plan({ disks: 'keep' }, { kind: 'none' })), [[], ['disks-moved-on']])
  const rollback = await plan({ disks: 'rollback' })
  t.strictSame(codes(rollback), [[], []], 'what is put back is of the moment')
  t.strictSame(rollback.args, [...args.slice(0, -1), '-r', rollback.args.at(-2), 'vm1'])
  // Without a decision, a fork would write to the disks of the saved VM.
  for (const disks of [undefined, 'keep'] as const) {
    const forked = await plan({ as: 'vm2', disks })
    t.match(forked.blockers, [
      {
        code: 'disks-undecided',
        message: /VM 'vm2' would write to the disks '.*a\.img', '.*b\.img' of the saved VM/,
      },
    ])
    t.strictSame(forked.args, [], 'no command that opens them is shown')
  }
  const readOnly = args.map((word) => (word.includes('virtio-blk') ? `${word},ro` : word))
  t.strictSame((await plan({ as: 'vm2', disks: 'keep', args: readOnly })).blockers, [])
  t.match((await plan({ as: 'vm2', args: readOnly })).blockers, [{ code: 'disks-undecided' }])
  t.ok(images.every((image) => fs.existsSync(image)))
})

t.test('planRestore: reports snapshots that cannot be used', async (t) => {
  const { plan, put, images, root } = planning(t)
  for (const [disks, as] of [
    ['rollback', undefined],
    ['clone', 'vm2'],
  ] as const) {
    const missing = async (copying?: CopyingOptions) => (await plan({ disks, as }, copying)).blockers
    t.match(await missing({ kind: 'none' }), [
      { code: 'disks-missing', message: /no provider of the kind 'copy'/ },
    ])
    t.match(await missing({ without: [disks] }), [
      { code: 'disks-missing', message: new RegExp(`has no '${disks}'`) },
    ])
    fs.renameSync(`${images[0] ?? ''}@x`, path.join(root, 'moved'))
    t.match(await missing(), [
      { code: 'disks-missing', message: /no longer exist: '.*a\.img@x': restore another/ },
    ])
    fs.renameSync(path.join(root, 'moved'), `${images[0] ?? ''}@x`)
    put({ id: undefined })
    t.match(await missing(), [{ code: 'disks-missing', message: /no id/ }])
    put({ version: 1, disks: undefined })
    t.match(await missing(), [{ code: 'disks-missing', message: /the checkpoint has no disk snapshots/ }])
    put()
    t.strictSame(await missing(), [])
  }
  const failing = copyingDisks(path.join(root, 'calls'))
  failing.missing = () => Promise.reject(new Error('the pool is gone'))
  const client = createClientIn(hostEnvironment, {
    checkpointDirectory: path.join(root, 'c'),
    runDirectory: path.join(root, '.run'),
    diskProviders: [failing],
  })
  const error = await rejection(
    client.planRestore('vm1', 'x', { args: [...small, 'vm1'], disks: 'rollback' }),
  )
  t.match(error, { code: 'ERR_SYSTEM', message: /the pool is gone/ })
})

t.test('planRestore: a fork needs a snapshot of each disk that it writes to', async (t) => {
  const { plan, put, images } = planning(t)
  const [a = '', b = ''] = images
  put({ disks: [{ kind: 'copy', disks: [{ path: a, snapshot: `${a}@x` }] }] })
  const uncovered = await plan(fork)
  t.match(uncovered.blockers, [
    { code: 'disks-missing', message: /no snapshot of '.*b\.img' \(virtio-blk@pci\.0\.5\.1\)/ },
  ])
  t.strictSame(uncovered.args, [])
  const args = [...small, '-s', `3,virtio-blk,${a}`, '-s', `5:1,virtio-blk,${b},ro`, 'vm1']
  const readOnly = await plan({ ...fork, args })
  t.strictSame(readOnly.blockers, [])
  t.ok(readOnly.args.includes(`5:1,virtio-blk,${b},ro`))
})

t.test('planRestore: a rollback must not leave out a disk that has changed since', async (t) => {
  const { plan, put, images, root } = planning(t)
  const [a = '', b = ''] = images
  put({ disks: [{ kind: 'copy', disks: [{ path: a, snapshot: `${a}@x` }] }] })
  const newer = await plan({ disks: 'rollback' })
  t.match(newer, {
    blockers: [{ code: 'disk-newer', message: /'.*b\.img' \(virtio-blk@pci\.0\.5\.1\) was/ }],
  })
  t.strictSame(codes(newer), [['disk-newer'], []])
  t.strictSame(codes(await plan({ disks: 'rollback', again: true })), [[], ['disks-moved-on']])
  t.strictSame(
    codes(await plan({ disks: 'keep' })),
    [[], ['disks-moved-on']],
    'that is the decision of the caller',
  )
  const readOnly = [...small, '-s', `3,virtio-blk,${a}`, '-s', `5:1,virtio-blk,${b},ro`, 'vm1']
  t.strictSame(codes(await plan({ disks: 'rollback', args: readOnly })), [[], ['disks-moved-on']])
  // The caller has put it back.
  fs.utimesSync(b, 1e9, 1e9)
  t.strictSame(codes(await plan({ disks: 'rollback' })), [[], []])
  const device = path.join(root, 'zvol')
  fs.mkdirSync(device)
  const args = [...small, '-s', `3,virtio-blk,${a}`, '-s', `5:1,virtio-blk,${device}`, 'vm1']
  t.match((await plan({ disks: 'rollback', args })).blockers, [
    { code: 'disk-newer', message: /no snapshot of '.*zvol'.*not known.*put it back yourself/ },
  ])
  t.strictSame((await plan({ disks: 'rollback', args, again: true })).blockers, [])
})

t.test('planRestore: a rollback must not change anything else', async (t) => {
  const { plan, put, images } = planning(t)
  const disks = [
    {
      kind: 'copy',
      disks: images.map((image) => ({ path: image, snapshot: `${image}@x` })),
      shared: ['vm9 is in it', '/'],
    },
  ]
  put({ disks })
  t.match((await plan({ disks: 'rollback' })).blockers, [
    { code: 'dataset-shared', message: /more than the disks of this VM: vm9 is in it/ },
    { code: 'dataset-shared', message: /: \/$/ },
  ])
  t.strictSame((await plan(fork)).blockers, [], 'a copy changes nothing')
  t.strictSame((await plan({ disks: 'rollback' }, { without: ['shared'] })).blockers, [])
  // A manifest of another host, or a hostile one, names a disk that this VM does not have.
  put()
  const args = [...small, '-s', `3,virtio-blk,${images[0] ?? ''}`, 'vm1']
  const other = await plan({ disks: 'rollback', args })
  t.match(other.blockers, [
    {
      code: 'dataset-shared',
      message: /also change '.*b\.img', which is not a writable disk in the arguments/,
    },
  ])
  const copied = await plan({ ...fork, args })
  t.match(copied.blockers, [
    { code: 'disks-missing', message: /also get a copy of '.*b\.img', which is not a writable disk/ },
  ])
})

t.test(
  'planRestore: a hostile manifest changes and copies only writable disks of the arguments',
  async (t) => {
    const { plan, put, images, root } = planning(t)
    const [a = '', b = ''] = images
    const rom = path.join(root, 'firmware.fd')
    const variables = path.join(root, 'variables.fd')
    const iso = path.join(root, 'install.iso')
    const configuration = path.join(root, 'conf')
    const shared = path.join(root, 'shared')
    for (const file of [rom, variables, iso]) fs.writeFileSync(file, 'good')
    fs.writeFileSync(configuration, 'x=1\n')
    fs.mkdirSync(shared)
    const args = [
      ...['-k', configuration, '-l', `bootrom,${rom},${variables}`, '-s', `2,ahci-cd,${iso}`],
      ...['-s', `6,virtio-9p,share=${shared}`, '-s', `3,virtio-blk,${a}`, '-s', `5:1,virtio-blk,${b},ro`],
      ...[...small, 'vm1'],
    ]
    for (const [index, target] of [
      rom,
      variables,
      iso,
      configuration,
      shared,
      b,
      '/etc/passwd',
      root,
    ].entries()) {
      put({
        disks: [{ kind: 'copy', disks: [a, target].map((disk) => ({ path: disk, snapshot: `${a}@x` })) }],
      })
      const named = (code: string): object => ({
        code,
        message: new RegExp(`'${target}', which is not a writable disk`),
      })
      const options = { args, again: true }
      const rollback = await plan({ ...options, disks: 'rollback' })
      t.match(
        rollback.blockers.filter(({ code }) => code === 'dataset-shared'),
        [named('dataset-shared')],
        target,
      )
      const copied = await plan({ ...options, ...fork })
      t.match(
        copied.blockers.filter(({ code }) => code === 'disks-missing'),
        [named('disks-missing')],
        `${index}`,
      )
    }
  },
)

t.test('planRestore: disks that are put back need no `again` and are not newer', async (t) => {
  const { plan, put, args, images, root } = planning(t)
  put({ poweredOff: true, restoredAt: '2026-01-01T00:00:00Z' })
  t.strictSame(
    (await plan({ disks: 'keep' })).blockers.map(({ code }) => code),
    ['already-restored', 'disk-newer', 'disk-newer'],
  )
  t.strictSame(codes(await plan({ disks: 'rollback' })), [[], []])
  t.strictSame((await plan(fork)).blockers, [])
  const iso = path.join(root, 'x.iso')
  fs.writeFileSync(iso, '')
  fs.utimesSync(iso, 1e9, 1e9)
  const withIso = [...args.slice(0, -1), '-s', `2,ahci-cd,${iso}`, 'vm1']
  t.strictSame(
    (await plan({ disks: 'rollback', args: withIso })).blockers,
    [],
    'the guest cannot change a CD',
  )
  const [a = ''] = images
  put({
    poweredOff: true,
    restoredAt: '2026-01-01T00:00:00Z',
    disks: [{ kind: 'copy', disks: [{ path: a, snapshot: `${a}@x` }] }],
  })
  const partly = await plan({ disks: 'rollback' })
  t.strictSame(
    partly.blockers.map(({ code }) => code),
    ['already-restored', 'disk-newer'],
  )
  t.match(partly.blockers[1]?.message, /b\.img/, 'only the disk without a snapshot')
})

t.test('planRestore: a recorded directory covers the disks below it', async (t) => {
  const { plan, put, root, images } = planning(t)
  put({ disks: [{ kind: 'copy', disks: [{ path: root, snapshot: `${images[0] ?? ''}@x` }] }] })
  t.strictSame(codes(await plan({ disks: 'rollback' })), [[], []])
  const { args, blockers } = await plan(fork)
  t.strictSame(blockers, [])
  t.ok(args.includes(`3,virtio-blk,${root}.vm2/a.img`))
})

t.test('planRestore: shows the command of a fork and what both VMs would share', async (t) => {
  const { plan, args, images, root } = planning(t)
  const files = tree(root)
  const [a = '', b = ''] = images
  const network = [...args.slice(0, -1), '-s', '4,virtio-net,tap0', '-s', '29,fbuf,tcp=127.0.0.1:5900', 'vm1']
  const shown = await plan({ ...fork, args: network })
  t.strictSame(codes(shown), [[], ['identity-duplicated', 'resources-shared']])
  t.match(shown.warnings[0]?.message, /VM 'vm2' has the identity of VM 'vm1' \(MAC addresses/)
  t.match(shown.warnings[1]?.message, /'tap0', 'tcp=127\.0\.0\.1:5900'$/)
  t.ok(shown.args.includes(`3,virtio-blk,${a}.vm2`))
  t.ok(shown.args.includes(`5:1,virtio-blk,${b}.vm2`))
  t.equal(shown.args.at(-1), 'vm2')
  t.equal(shown.args.at(-3), '-r')
  t.strictSame(codes(await plan(fork)), [[], ['identity-duplicated']], 'the names may differ')
  const unknown = await plan(fork, { without: ['clonePaths'] })
  t.strictSame(unknown.blockers, [])
  t.ok(unknown.args.includes(`3,virtio-blk,/nonexistent/copy-for-vm2${a}`))
  t.strictSame(tree(root), files, 'nothing was made')
})

t.test('planRestore: a fork whose arguments cannot be rewritten is blocked', async (t) => {
  const { plan, put, args, root, images } = planning(t)
  const configuration = path.join(root, 'conf')
  fs.writeFileSync(configuration, `pci.0.3.0.device=virtio-blk\npci.0.3.0.path=${images[0] ?? ''}\n`)
  put({ disks: [{ kind: 'copy', disks: [{ path: images[0], snapshot: `${images[0] ?? ''}@x` }] }] })
  const inFile = await plan({ ...fork, args: [...small, '-k', configuration, 'vm1'] })
  t.match(inFile.blockers, [{ code: 'arguments-invalid', message: /could not be replaced.*-k/ }])
  t.strictSame(inFile.args, [])
  put()
  const other = await plan({ ...fork, args: [...args.slice(0, -1), 'vm3'] })
  t.match(other.blockers, [{ code: 'arguments-invalid', message: /for VM 'vm3'/ }])
  t.strictSame(
    (await plan({ ...fork, args: ['-Z', 'vm1'] })).blockers.map(({ code }) => code),
    ['arguments-invalid'],
  )
})

t.test('planRestore: a fork cannot use a name that is running or suspended', async (t) => {
  const { plan, root } = planning(t)
  putSet(path.join(root, 'c/vm2'), 'suspend', { vm: 'vm2', manifest: { vm: 'vm2', poweredOff: true } })
  const used = await plan(fork)
  t.match(used.blockers, [{ code: 'name-in-use', message: /'vm2' has a suspended state 'suspend'/ }])
  const restored = { vm: 'vm2', poweredOff: true, restoredAt: '2026-01-01T00:00:00Z' }
  putSet(path.join(root, 'c/vm2'), 'suspend', { vm: 'vm2', manifest: restored })
  t.strictSame((await plan(fork)).blockers, [])
})
