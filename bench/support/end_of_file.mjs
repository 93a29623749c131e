/** Records when Node reports the end of a connection. bhyve's work has ended then. */
import net from 'node:net'

const push = net.Socket.prototype.push
let last

net.Socket.prototype.push = function (chunk, ...rest) {
  if (chunk === null) last = performance.now()
  return push.call(this, chunk, ...rest)
}

export function lastEnd() {
  return last
}
