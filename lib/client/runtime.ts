/** Lists what runtimes other than Node do not support. Calls check it before they send or change anything. */
import { CheckpointError } from '../base/errors.js'

export type Runtime = 'node' | 'bun' | 'deno'

export const thisRuntime: Runtime =
  'bun' in process.versions ? 'bun' : 'deno' in process.versions ? 'deno' : 'node'

/** Operations that some runtimes do not support. */
export type Ability = 'create' | 'restore' | 'pin' | 'verify content'

const noEnd = 'Bun does not report when bhyve closes the connection, which is how a checkpoint ends'
const noDescriptors = "Deno's node:fs does not accept descriptors that the addon has opened"

/** `npm run test:matrix` tests each entry. */
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

/** Why the runtime does not support every call. Undefined if it does. */
export function limitOf(runtime: Runtime): string | undefined {
  return Object.values(missing[runtime])[0]
}

/** Throws `ERR_RUNTIME_UNSUPPORTED`. */
export function assertRuntimeCan(
  runtime: Runtime,
  ability: Ability,
  { doing, vm, checkpoint }: { doing: string; vm: string; checkpoint: string },
): void {
  const why = missing[runtime][ability]
  if (why === undefined) return
  const message = `${doing}: this runtime does not support it (${why}). Nothing was sent or changed. Use Node`
  throw new CheckpointError('ERR_RUNTIME_UNSUPPORTED', message, { vm, checkpoint })
}
