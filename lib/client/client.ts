/** `createClient`: options in, calls out. */
import type { ClientOptions } from '../base/types.js'
import { MachineCalls } from './calls/machine_calls.js'
import { RestoringCalls } from './calls/restoring_calls.js'
import { SavingCalls } from './calls/saving_calls.js'
import { StoredCalls } from './calls/stored_calls.js'
import type { CheckpointClient } from './checkpoint_client.js'
import { Session } from './session.js'
import { realSurroundings, type Surroundings } from './surroundings.js'
import { tracedClient } from './traced_client.js'

/**
 * A client of its own. It holds no descriptor and no connection between calls; clients share the library's
 * threads and nothing else. Throws `ERR_INVALID_OPTION`.
 *
 * @example
 * const client = createClient({ checkpointDirectory: '/zroot/checkpoints' })
 */
export function createClient(options: ClientOptions = {}): CheckpointClient {
  return createClientIn(realSurroundings, options)
}

/** The same in other surroundings: for tests. */
export function createClientIn(surroundings: Surroundings, options: ClientOptions = {}): CheckpointClient {
  const session = new Session(surroundings, options)
  const rooms = {
    saving: new SavingCalls(session),
    stored: new StoredCalls(session),
    machines: new MachineCalls(session),
    restoring: new RestoringCalls(session),
  }
  return tracedClient(rooms, () => session.idle())
}
