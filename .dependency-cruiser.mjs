// Which folder of lib/ may import which: down this list, never up, and never in a circle. Type-only imports count.
const floors = [
  'cli',
  'index.ts',
  'client',
  'operations',
  'worker',
  'store',
  'bhyve',
  'bhyve_arguments',
  'checkpoint',
  'pool',
  'fs',
  'base',
]
/** Within the store. `paths.ts` has names only, and everybody may know them. */
const store = ['catalog', 'commit', 'staging']

const inFloor = (floor) => (floor.endsWith('.ts') ? `^lib/${floor}$` : `^lib/${floor}/`)

export default {
  forbidden: [
    { name: 'no-circle', severity: 'error', from: {}, to: { circular: true } },
    ...floors.slice(1).map((floor, index) => ({
      name: `no-import-up-from-${floor}`,
      severity: 'error',
      from: { path: inFloor(floor) },
      to: { path: floors.slice(0, index + 1).map(inFloor) },
    })),
    ...store.map((folder, index) => ({
      name: `no-import-up-from-store-${folder}`,
      severity: 'error',
      from: { path: `^lib/store/${folder}/` },
      to: {
        path: ['^lib/store/[^/]+$', ...store.slice(0, index).map((above) => `^lib/store/${above}/`)],
        pathNot: '^lib/store/paths\\.ts$',
      },
    })),
    {
      name: 'simulator-stands-alone',
      comment: 'It decodes with its own code, so that one mistake cannot hide on both sides.',
      severity: 'error',
      from: { path: '^lib/simulator/' },
      to: { path: '^lib/', pathNot: '^lib/(simulator|base|fs)/' },
    },
    {
      name: 'only-the-command-line-simulates',
      severity: 'error',
      from: { path: '^lib/', pathNot: '^lib/(simulator|cli)/' },
      to: { path: '^lib/simulator/' },
    },
    {
      name: 'nothing-loose',
      comment: 'Every file but index.ts is in a folder.',
      severity: 'error',
      from: { path: '^lib/' },
      to: { path: '^lib/[^/]+\\.ts$', pathNot: '^lib/index\\.ts$' },
    },
  ],
  options: {
    tsPreCompilationDeps: true,
    tsConfig: { fileName: 'tsconfig.json' },
    doNotFollow: { path: 'node_modules' },
  },
}
