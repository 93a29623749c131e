// The operations to record. `setup` runs before the recording, and its result is on disk. `traced` is recorded. `c` is
// the Operator of operator.mjs, and each of its methods makes one call of the public API.

const two = async (c) => {
  await c.create('checkpoint')
  await c.create('other')
}
const withForeignFile = async (c) => {
  await two(c)
  c.putForeignFile()
}
const suspended = (c) => c.suspend('suspend')

/** A manager is killed during a suspend, at the point that `strike` defines (strike.mjs). Another process recovers. */
const killedSuspend = (strike) => ({
  traced: async (c) => {
    await c.killed('suspend', 'suspend', strike)
    await c.list()
  },
})

/** A manager is killed during an operation on the existing `checkpoint`. Another process recovers. */
const killed = (call, strike) => ({
  setup: two,
  traced: async (c) => {
    await c.killed(call, 'checkpoint', strike)
    await c.list()
  },
})

/** The recovery after a power failure. */
export const recover = { traced: (c) => c.list() }

const withDisks = async (c) => {
  await c.createWithDisk('checkpoint')
  await c.createWithDisk('other')
}

/** The state is published, and its disk is copied. */
const copied = { since: ['renameAt:.ckp', 'renameAt:.snapshots', 'dataRange'] }

/** As `killed`, with disk snapshots in all checkpoints. */
const killedWithDisks = (call, strike) => ({
  setup: withDisks,
  traced: async (c) => {
    await c.killed(call, 'checkpoint', strike)
    await c.list()
  },
})

const suspendedWithDisk = (c) => c.suspendWithDisk('suspend')
const restoredWithDisk = async (c) => {
  await c.suspendWithDisk('suspend')
  await c.restore('suspend')
}

/** As `killedSuspend`. The suspended state that is replaced was restored. All have disk snapshots. */
const killedSuspendWithDisk = (strike) => ({
  setup: restoredWithDisk,
  traced: async (c) => {
    await c.killed('suspendWithDisk', 'suspend', strike)
    await c.list()
  },
})

const usual = {
  create: { traced: (c) => c.create('checkpoint') },
  replace: { setup: withForeignFile, traced: (c) => c.create('checkpoint') },
  'replace-pinned': {
    setup: async (c) => {
      await c.create('checkpoint')
      await c.pin('checkpoint', true)
    },
    traced: (c) => c.create('checkpoint'),
  },
  'create-in-memory': { traced: (c) => c.createInMemory('checkpoint') },
  'replace-in-memory': { setup: withForeignFile, traced: (c) => c.createInMemory('checkpoint') },
  destroy: { setup: withForeignFile, traced: (c) => c.destroy('checkpoint') },
  'destroy-all': { setup: two, traced: (c) => c.destroyAll() },
  'destroy-all-but-foreign': { setup: withForeignFile, traced: (c) => c.destroyAll() },
  prune: {
    setup: async (c) => {
      for (const name of ['first', 'second', 'third']) await c.create(name)
      await c.pin('first', true)
    },
    traced: (c) => c.prune({ keepLast: 1 }, ['second']),
  },
  pin: { setup: two, traced: (c) => c.pin('checkpoint', true) },
  unpin: {
    setup: async (c) => {
      await c.create('checkpoint')
      await c.pin('checkpoint', true)
    },
    traced: (c) => c.pin('checkpoint', false),
  },
  suspend: { traced: suspended },
  'suspend-over-older': { setup: (c) => c.create('suspend'), traced: suspended },
  'suspend-over-suspended': {
    setup: async (c) => {
      await c.suspend('suspend')
      await c.restore('suspend')
    },
    traced: suspended,
  },
  restore: { setup: suspended, traced: (c) => c.restore('suspend') },
  // Two calls in a row: soft updates may still hold back changes of the first one.
  'create-replace': {
    traced: async (c) => {
      await c.create('checkpoint')
      await c.create('checkpoint')
    },
  },
  'create-pin': {
    traced: async (c) => {
      await c.create('checkpoint')
      await c.pin('checkpoint', true)
    },
  },
  'create-destroy': {
    traced: async (c) => {
      await c.create('checkpoint')
      await c.destroy('checkpoint')
    },
  },
  'suspend-restore': {
    traced: async (c) => {
      await c.suspend('suspend')
      await c.restore('suspend')
    },
  },
  'pin-unpin': {
    setup: (c) => c.create('checkpoint'),
    traced: async (c) => {
      await c.pin('checkpoint', true)
      await c.pin('checkpoint', false)
    },
  },
  'killed-suspend-ended': killedSuspend({ phase: 'checking' }),
  'killed-suspend-scan': killedSuspend({ after: 'punchHole' }),
  'killed-suspend-manifest': killedSuspend({ before: 'sync', since: ['punchHole'] }),
  'killed-suspend-publishing': killedSuspend({ phase: 'publishing' }),
  'killed-suspend-renames': killedSuspend({ after: 'renameAt', to: '.ckp.manifest' }),
  'killed-create-early': killed('create', { phase: 'syncing' }),
  'killed-create-renames': killed('create', { after: 'renameAt', to: '.ckp.manifest' }),
  // A part of RAM was copied and is no longer in memory.
  'killed-create-in-memory': killed('createManySlicesInMemory', {
    after: 'punchHole',
    since: ['zeroRuns'],
  }),
  'killed-destroy': killed('destroy', { after: 'renameAt', to: '.ckp' }),
  'killed-restore': {
    setup: suspended,
    traced: async (c) => {
      await c.killed('restore', 'suspend', { after: 'spawn' })
      await c.list()
    },
  },
  'disks-replace-without': { setup: withDisks, traced: (c) => c.create('checkpoint') },
  'disks-destroy': { setup: withDisks, traced: (c) => c.destroy('checkpoint') },
  'disks-destroy-all': { setup: withDisks, traced: (c) => c.destroyAll() },
  'disks-prune': { setup: withDisks, traced: (c) => c.prune({ keepLast: 1 }, ['checkpoint']) },
  'disks-create-replace': {
    traced: async (c) => {
      await c.createWithDisk('checkpoint')
      await c.createWithDisk('checkpoint')
    },
  },
  'disks-suspend-over-suspended': { setup: restoredWithDisk, traced: suspendedWithDisk },
  'disks-killed-create-copied': killedWithDisks('createWithDisk', { phase: 'checking' }),
  'disks-killed-create-committed': killedWithDisks('createWithDisk', { after: 'renameAt', to: '.ready' }),
  'disks-killed-destroy': killedWithDisks('destroy', { after: 'renameAt', to: '.ckp' }),
  'disks-killed-suspend-copied': killedSuspendWithDisk({ before: 'sync', ...copied }),
  'disks-killed-suspend-listed': killedSuspendWithDisk({
    after: 'renameAt',
    to: '.ckp.manifest',
    ...copied,
  }),
}

/** Variants of the operations with disks, which only `--all` adds: each one takes seconds. */
const more = {
  'disks-create': { traced: (c) => c.createWithDisk('checkpoint') },
  'disks-replace': { setup: withDisks, traced: (c) => c.createWithDisk('checkpoint') },
  'disks-create-destroy': {
    traced: async (c) => {
      await c.createWithDisk('checkpoint')
      await c.destroy('checkpoint')
    },
  },
  'disks-pin': { setup: withDisks, traced: (c) => c.pin('checkpoint', true) },
  'disks-suspend': { traced: suspendedWithDisk },
  'disks-restore': { setup: suspendedWithDisk, traced: (c) => c.restore('suspend') },
  'disks-killed-create-recorded': killedWithDisks('createWithDisk', { phase: 'frozen' }),
  'disks-killed-create-set-aside': killedWithDisks('createWithDisk', {
    after: 'renameAt',
    to: 'replaced.manifest',
  }),
  'disks-killed-destroy-recorded': killedWithDisks('destroy', { before: 'unlinkAt', to: '.ckp.manifest' }),
  'disks-killed-suspend-committed': killedSuspendWithDisk({ after: 'renameAt', to: '.ready' }),
}

export const usualNames = Object.keys(usual)
export const operations = { ...usual, ...more }
