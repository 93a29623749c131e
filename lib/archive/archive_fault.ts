/** The error for an archive that is not the archive of one checkpoint. */
import { CheckpointError, type ErrorDetails } from '../base/errors.js'

export function archiveInvalid(reason: string, details: ErrorDetails = {}): CheckpointError {
  const message = `The archive is not valid: ${reason}. Nothing was published`
  return new CheckpointError('ERR_ARCHIVE_INVALID', message, details)
}
