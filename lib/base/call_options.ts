/** Options of every call that can wait: for a lock of another process, for a thread, or for disk snapshots. */
export interface CallOptions {
  /**
   * Cancels the call, which then rejects with an `AbortError`. This stops the waiting only. The error's `begun` is false
   * if the work had not begun; it never will. It is true if the work had begun: a removal or another change may still
   * happen, and `idle()` waits for it.
   */
  signal?: AbortSignal | undefined
  /**
   * The time limit of the call, in milliseconds. When it expires, the call is cancelled as by `signal` and rejects with
   * `ERR_TIMEOUT`. Default: no limit.
   */
  timeout?: number | undefined
}
