/** `createClient`: checks the options and builds the client. */
import type { ClientOptions } from '../base/types.js'
import { ArchiveCalls } from './calls/archive_calls.js'
import { DiagnosisCalls } from './calls/diagnosis_calls.js'
import { MachineCalls } from './calls/machine_calls.js'
import { MoveCalls } from './calls/move_calls.js'
import { RemovingCalls } from './calls/removing_calls.js'
import { RestoringCalls } from './calls/restoring_calls.js'
import { SavingCalls } from './calls/saving_calls.js'
import { StoredCalls } from './calls/stored_calls.js'
import type { CheckpointClient } from './checkpoint_client.js'
import { Session } from './session.js'
import { hostEnvironment, type Environment } from './environment.js'
import { tracedClient } from './traced_client.js'

/**
 * Creates a client. A client holds no descriptor and no connection between calls. All clients of a process share the
 * library's threads and nothing else. Throws `ERR_INVALID_OPTION`.
 *
 * @example
 * const client = createClient({ checkpointDirectory: '/zroot/checkpoints' })
 */
export function createClient(options: ClientOptions = {}): CheckpointClient {
  return createClientIn(hostEnvironment, options)
}

/** Creates a client in another environment, for tests. */
export function createClientIn(environment: Environment, options: ClientOptions = {}): CheckpointClient {
  const session = new Session(environment, options)
  const callGroups = {
    saving: new SavingCalls(session),
    stored: new StoredCalls(session),
    removing: new RemovingCalls(session),
    machines: new MachineCalls(session),
    restoring: new RestoringCalls(session),
    diagnosis: new DiagnosisCalls(session),
    archives: new ArchiveCalls(session),
  }
  return tracedClient({ ...callGroups, moves: new MoveCalls(session, callGroups) }, session)
}
