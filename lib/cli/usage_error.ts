/** The command line itself makes no sense: said with a pointer to the help. */
export class UsageError extends Error {
  readonly code = 'ERR_USAGE'

  constructor(message: string) {
    super(message)
    this.name = 'UsageError'
  }
}
