// A directory of lib/ may import only from directories further down this list, and imports must not form a cycle.
// Type-only imports count too.
const layers = [
  'cli',
  'index.ts',
  'client',
  'operations',
  'worker',
  'diagnosis',
  'store',
  'bhyve',
  'disks',
  'bhyve_arguments',
  'archive',
  'checkpoint',
  'pool',
  'fs',
  'base',
]
/** The layers within the store. `paths.ts` has only names, and every layer may import it. */
const store = ['catalog', 'commit', 'staging']

const inLayer = (layer) => (layer.endsWith('.ts') ? `^lib/${layer}$` : `^lib/${layer}/`)

export default {
  forbidden: [
    { name: 'no-cycle', severity: 'error', from: {}, to: { circular: true } },
    ...layers.slice(1).map((layer, index) => ({
      name: `no-import-up-from-${layer}`,
      severity: 'error',
      from: { path: inLayer(layer) },
      to: { path: layers.slice(0, index + 1).map(inLayer) },
    })),
    ...store.map((directory, index) => ({
      name: `no-import-up-from-store-${directory}`,
      severity: 'error',
      from: { path: `^lib/store/${directory}/` },
      to: {
        path: ['^lib/store/[^/]+$', ...store.slice(0, index).map((above) => `^lib/store/${above}/`)],
        pathNot: '^lib/store/paths\\.ts$',
      },
    })),
    {
      name: 'simulator-is-independent',
      comment: 'The simulator decodes with its own code, so that the same mistake is not in both programs.',
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
      name: 'every-file-in-a-directory',
      comment: 'Every file except index.ts is in a directory.',
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
