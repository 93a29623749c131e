import type { ProcessEnd } from '../../bhyve/process_end.js'
import type { Stage } from '../../store/stage.js'
import type { SaveSettings } from '../settings.js'
import type { SavingCall, SavingContext } from './call.js'

/** What the steps of one suspend share. */
export interface Suspending {
  context: SavingContext
  settings: SaveSettings
  call: SavingCall
  stage: Stage
  /** The end of the process that received the request. */
  end?: ProcessEnd
}
