// Prints which checkpoints prune policies remove, in the time zone of this process. Reads the cases as JSON.
import { choose } from '../../dist/store/catalog/prune.js'

const cases = JSON.parse(process.argv[2])
const removed = cases.map(({ times, policy }) => {
  const checkpoints = times.map((time) => {
    const base = { vm: 'vm1', path: '/a.ckp', storedBytes: 1, pinned: false, poweredOff: false }
    return { ...base, name: time, createdAt: new Date(time), state: 'complete', problems: [] }
  })
  return choose(checkpoints, policy, Date.UTC(2030, 0, 1)).map(({ name }) => name)
})
console.log(JSON.stringify(removed))
