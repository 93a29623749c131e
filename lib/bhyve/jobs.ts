/** The jobs of this directory that run in the pool's threads. */
export { locateSocket } from './locate.js'
export { findSockets } from './virtual_machines.js'
export { supervisorOf } from './supervisors/find.js'
export { checkVmBhyve, removeSuspendingLock, writeSuspendingLock } from './supervisors/suspending_lock.js'
