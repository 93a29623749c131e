import type { ProcessEnd } from '../../bhyve/process_end.js'
import type { Stage } from '../../store/stage.js'
import type { SaveSettings } from '../settings.js'
import type { SavingCall, SavingContext } from './call.js'

/** One suspend: what its steps share. */
export interface Suspending {
  context: SavingContext
  settings: SaveSettings
  call: SavingCall
  stage: Stage
  /** Of the process that was asked. */
  end?: ProcessEnd
}
