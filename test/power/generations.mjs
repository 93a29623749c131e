// Finds the saved generation that the files of a checkpoint belong to.
export const suffixes = { memory: '.ckp', kernel: '.ckp.kern', metadata: '.ckp.meta' }

/** Undefined if there is no such file. */
export function digestAt({ observed }, file) {
  return observed.files.find((one) => one.file === `vm1/${file}`)?.digest
}

/** The generation that all three files belong to; undefined if there is none. */
export function generationOf(context, name) {
  const parts = Object.entries(suffixes).map(([part, suffix]) => [part, digestAt(context, name + suffix)])
  const isOf = (generation) => parts.every(([part, digest]) => digest === generation[part])
  return Object.entries(context.generations).find(([, generation]) => isOf(generation))?.[0]
}
