/** The command line is invalid. The output refers to the help. */
export class UsageError extends Error {
  readonly code = 'ERR_USAGE'

  constructor(message: string) {
    super(message)
    this.name = 'UsageError'
  }
}
