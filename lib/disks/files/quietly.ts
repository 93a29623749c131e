import { CheckpointError } from '../../base/errors.js'

/** Cleans up after a failure. The error of that failure matters more than one of the cleaning. */
export function quietly(clean: () => void): void {
  try {
    clean()
  } catch (error) {
    if (!(error instanceof CheckpointError)) throw error
  }
}
