/** What a runtime other than Node cannot do. Asked before anything is sent to bhyve or changed on the disk. */
import { CheckpointError } from '../base/errors.js'

export type Runtime = 'node' | 'bun' | 'deno'

export const thisRuntime: Runtime =
  'bun' in process.versions ? 'bun' : 'deno' in process.versions ? 'deno' : 'node'

/** What needs more of a runtime than the rest. */
export type Ability = 'create' | 'restore' | 'pin' | 'verify content'

const noEnd = 'Bun does not report that bhyve has closed the connection, which is the end of a checkpoint'
const noDescriptors = "Deno's node:fs takes no descriptors that the addon has opened"

/** `npm run test:matrix` tries all of it. */
const missing: Readonly<Record<Runtime, Partial<Record<Ability, string>>>> = {
  node: {},
  bun: { create: noEnd },
  deno: {
    create: noDescriptors,
    restore: noDescriptors,
    pin: noDescriptors,
    'verify content': noDescriptors,
  },
}

/** Throws `ERR_RUNTIME_UNSUPPORTED`. */
export function assertRuntimeCan(
  runtime: Runtime,
  ability: Ability,
  { doing, vm, checkpoint }: { doing: string; vm: string; checkpoint: string },
): void {
  const why = missing[runtime][ability]
  if (why === undefined) return
  const message = `${doing}: this runtime cannot do that (${why}). Nothing was sent or changed. Use Node`
  throw new CheckpointError('ERR_RUNTIME_UNSUPPORTED', message, { vm, checkpoint })
}
