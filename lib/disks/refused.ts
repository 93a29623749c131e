import { withDetails } from '../base/errors.js'

/** For checks that do not depend on the disks: what they refuse once they refuse always, so nothing was changed. */
export function unchangedIfRefused<T>(check: () => T): T {
  try {
    return check()
  } catch (error) {
    throw withDetails(error, { unchanged: true })
  }
}
