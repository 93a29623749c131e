// A small HTTP service that creates checkpoints (with progress as server-sent events), lists and destroys them.
//
//   TOKEN=secret PORT=8080 node http-service.mjs
//   curl -N -X POST -H 'Authorization: Bearer secret' localhost:8080/vms/vm1/checkpoints/before-upgrade
//
// The service runs as root. It therefore listens on localhost only, and every request needs the token.
import { createHash, timingSafeEqual } from 'node:crypto'
import { createClient } from 'bhyve-checkpoint'
import fastify from 'fastify'

const client = createClient({
  runDirectory: process.env.RUN_DIRECTORY,
  checkpointDirectory: process.env.CHECKPOINT_DIRECTORY,
})
const token = process.env.TOKEN
if (!token) throw new Error('TOKEN is not set')

const statusOf = {
  ERR_INVALID_VM_NAME: 400,
  ERR_INVALID_CHECKPOINT_NAME: 400,
  ERR_PERMISSION: 403,
  ERR_CHECKPOINT_NOT_FOUND: 404,
  ERR_VM_NOT_RUNNING: 409,
  ERR_CHECKPOINT_EXISTS: 409,
  ERR_CHECKPOINT_BUSY: 409,
  ERR_NO_SPACE: 507,
}
const server = fastify()
const digest = (text) => createHash('sha256').update(text).digest()
const expected = digest(`Bearer ${token}`)

server.addHook('onRequest', async (request, reply) => {
  if (!timingSafeEqual(digest(request.headers.authorization ?? ''), expected)) await reply.code(401).send()
})

server.setErrorHandler((error, _request, reply) => {
  const { code, message, vmState } = error
  return reply.code(statusOf[code] ?? 500).send({ code, message, vmState })
})

server.get('/vms/:vm/checkpoints', ({ params }) => client.listCheckpoints(params.vm))

server.delete('/vms/:vm/checkpoints/:name', async ({ params }, reply) => {
  await client.destroyCheckpoint(params.vm, params.name)
  return reply.code(204).send()
})

server.post('/vms/:vm/checkpoints/:name', async ({ params }, reply) => {
  // From here on, this handler writes the response itself. The save continues if the client disconnects.
  reply.hijack()
  reply.raw.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' })
  const send = (event, data) => reply.raw.write(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`)
  try {
    const onProgress = (progress) => send('progress', progress)
    send('created', await client.createCheckpoint(params.vm, { name: params.name, onProgress }))
  } catch ({ code, message, vmState, problems }) {
    send('failed', { code, message, vmState, problems })
  }
  reply.raw.end()
})

process.once('SIGTERM', async () => {
  await server.close()
  await client.idle()
})
console.log(await server.listen({ host: '127.0.0.1', port: Number(process.env.PORT ?? 8080) }))
