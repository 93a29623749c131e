/** What this folder does in the pool's threads. */
export { locateSocket } from './locate.js'
export { findSockets } from './virtual_machines.js'
