// Runs a simulated bhyve as another user until the end of standard input.
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'

const [runDirectory, uid, dialect] = process.argv.slice(2)
process.setgid(Number(uid))
process.setuid(Number(uid))
process.env.TMPDIR = runDirectory
await SimulatedBhyve.start({ vm: 'vm1', runDirectory, memoryBytes: 1024 * 1024, dialect })
process.stdin.resume()
