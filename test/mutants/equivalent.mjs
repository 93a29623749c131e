/** Mutants without any observable effect, each with the reason. */
export const equivalents = [
  {
    key: '0b2e97221c',
    why: 'checkpoint/manifest_file.ts: without the position of the list the size is compared with NaN, which no size equals',
  },
  {
    key: 'a0b92ec179',
    why: 'checkpoint/manifest_file.ts: the additional iteration reads no digests, and an empty update changes no hash',
  },
  {
    key: 'ae8a62705d',
    why: 'fs/directory.ts: each owned descriptor has an open file description of its own, and unlocking one that was never locked does nothing',
  },
  {
    key: 'a77568cb4b',
    why: 'store/commit/recover.ts: an entry that is not a directory is removed either way: by removeEntry here, or by openDirectoryOrRemove when opening fails',
  },
]
