/** Why bhyve would not take an argument, in words. */
export class ArgumentsFault extends Error {}
