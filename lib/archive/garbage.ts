/**
 * Keeps the memory of used Buffers small. V8 frees it when it collects young objects, and may let 32 MiB of it pile up
 * before it does so for the sake of Buffers alone. Objects on its own heap make it collect sooner.
 */
const share = 2
const bytesPerElement = 8
const maxElements = 8192
/** Module-level, so that the allocation is not optimized away. */
const last: { elements: unknown[] } = { elements: [] }

/** Call this for each Buffer of a long stream, with its length. */
export function collectSooner(bytes: number): void {
  last.elements = new Array<unknown>(Math.min(maxElements, Math.ceil(bytes / share / bytesPerElement)))
}
