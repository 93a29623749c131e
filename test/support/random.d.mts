/** Numbers from 0 to 1. The same seed gives the same numbers. */
export function generator(seed: number): () => number
