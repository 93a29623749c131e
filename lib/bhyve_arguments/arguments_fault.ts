/** Thrown if bhyve would reject an argument. The message is the reason, a lower-case clause. */
export class ArgumentsFault extends Error {}
