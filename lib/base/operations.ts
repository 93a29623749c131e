/** The operations of a client. */

/** The names of the operations. Each has a channel named `bhyve-checkpoint:<operation>`. */
export const operations = Object.freeze([
  'create',
  'suspend',
  'list',
  'listAll',
  'get',
  'destroy',
  'destroyAll',
  'verify',
  'label',
  'pin',
  'prune',
  'pruneAll',
  'listStored',
  'suspendedCheckpoint',
  'pause',
  'resume',
  'listVirtualMachines',
  'planRestore',
  'restore',
  'planCheckpoint',
  'diagnose',
  'export',
  'import',
  'move',
  'receive',
  'resolveMove',
] as const)

/** The name of an operation. */
export type Operation = (typeof operations)[number]
