// Sends a request through a plain socket and checks nothing. It shows how the VMs' own writing loads the machine.
import fs from 'node:fs'
import net from 'node:net'
import path from 'node:path'

/** Sends a request of dialect `path` and waits for the end of the connection: the minimum for every program. */
export async function askBare(socketPath, file) {
  fs.mkdirSync(path.dirname(file), { recursive: true })
  const socket = net.connect(socketPath)
  socket.end(request(file))
  await new Promise((resolve, reject) => {
    socket.once('close', resolve).once('error', reject).resume()
  })
}

function request(file) {
  const pairs = [pair(4, 'cmd', 'checkpoint\0'), pair(4, 'filename', `${file}\0`), pair(2, 'suspend', '\0')]
  const body = Buffer.concat(pairs)
  const head = Buffer.alloc(19)
  head.writeUInt8(0x6c)
  head.writeBigUInt64LE(BigInt(body.length), 11)
  return Buffer.concat([head, body])
}

function pair(type, name, data) {
  const head = Buffer.alloc(19)
  head.writeUInt8(type)
  head.writeUInt16LE(name.length + 1, 1)
  head.writeBigUInt64LE(BigInt(Buffer.byteLength(data)), 3)
  return Buffer.concat([head, Buffer.from(`${name}\0${data}`)])
}
