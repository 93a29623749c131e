/** Mutants that change nothing anybody can see, each with the reason. */
export const equivalents = [
  {
    key: '47c309d6d0',
    why: 'checkpoint/manifest_file.ts: without a place of the list the sum that the size is compared with is NaN, which no size equals',
  },
  {
    key: 'a0b92ec179',
    why: 'checkpoint/manifest_file.ts: the round more asks for no digests, and an empty update changes no hash',
  },
  {
    key: 'ae8a62705d',
    why: 'fs/directory.ts: each owned descriptor has an open file description of its own, and unlocking one that was never locked does nothing',
  },
  {
    key: 'a77568cb4b',
    why: 'store/commit/recover.ts: what is no folder goes either way, by removeEntry here, or by openFolder once the opening has failed',
  },
]
