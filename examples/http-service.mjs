// A small orchestrator: creates checkpoints over HTTP, each request exactly once, even if this service is killed meanwhile.
//
//   TOKEN=secret PORT=8080 node http-service.mjs
//   curl -N -X POST -H 'Authorization: Bearer secret' -H 'Idempotency-Key: 4711' localhost:8080/vms/vm1/checkpoints/before-upgrade
//
// A caller chooses an Idempotency-Key for each checkpoint that it wants. If the connection breaks, it sends the same
// request again until it gets an answer. The key is a label of the checkpoint, so the service needs no journal.
//
// The service runs as root. It therefore listens on localhost only, and every request needs the token.
import { createHash, timingSafeEqual } from 'node:crypto'
import { createClient } from 'bhyve-checkpoint'
import fastify from 'fastify'

const { TOKEN, PORT = '8080', REPEAT_MS = String(86_400_000), REPORT_MS = '10000' } = process.env
if (!TOKEN) throw new Error('TOKEN is not set')
const client = createClient({
  runDirectory: process.env.RUN_DIRECTORY,
  checkpointDirectory: process.env.CHECKPOINT_DIRECTORY,
})

/** The label that distinguishes the checkpoints of this service from all others. */
const owner = 'http-service'
const policy = {
  keepDaily: 7,
  keepWeekly: 4,
  keepMonthly: 12,
  // If a request is repeated after its checkpoint was pruned, it is fulfilled again.
  keepWithinMs: Number(REPEAT_MS),
  labels: { owner },
}
const statusOf = {
  ERR_INVALID_VM_NAME: 400,
  ERR_INVALID_CHECKPOINT_NAME: 400,
  ERR_INVALID_OPTION: 400,
  ERR_PERMISSION: 403,
  ERR_CHECKPOINT_NOT_FOUND: 404,
  ERR_VM_NOT_RUNNING: 409,
  ERR_CHECKPOINT_EXISTS: 409,
  ERR_NO_SPACE: 507,
}
const server = fastify()
const digest = (text) => createHash('sha256').update(text).digest()
const expected = digest(`Bearer ${TOKEN}`)

server.addHook('onRequest', async (request, reply) => {
  if (!timingSafeEqual(digest(request.headers.authorization ?? ''), expected)) await reply.code(401).send()
})

server.setErrorHandler((error, _request, reply) => {
  if (error.retryable) reply.code(503).header('retry-after', '5')
  else reply.code(statusOf[error.code] ?? error.statusCode ?? 500)
  // The errors of fastify have no toJSON().
  return reply.send(error.toJSON?.() ?? { code: error.code, message: error.message })
})

const isOf = (request, labels) => labels?.owner === owner && labels.request === request

/** The checkpoint of a request that was fulfilled before, also if it was recovered under another name after a crash. */
async function fulfilled(vm, request) {
  const checkpoints = await client.listCheckpoints(vm)
  return checkpoints.find(({ state, labels }) => state === 'complete' && isOf(request, labels))
}

/** Resolves with the one checkpoint of a request, whether this call or a concurrent one has created it. */
async function fulfil(vm, name, request, options) {
  try {
    const labels = { owner, request }
    return await client.createCheckpoint(vm, { name, labels, ifExists: 'fail', ...options })
  } catch (error) {
    if (!isOf(request, error.existing?.labels)) throw error
    return { vm, name, id: error.existing.id }
  }
}

// The characters that both a header and a label can have.
const key = { type: 'string', pattern: '^[!-~]{1,256}$' }
const headers = { type: 'object', required: ['idempotency-key'], properties: { 'idempotency-key': key } }

/** With progress as server-sent events. The body can have the arguments of bhyve, `{ "args": [...] }`, which are recorded: a restore then needs none. */
server.post('/vms/:vm/checkpoints/:name', { schema: { headers } }, async (request, reply) => {
  const { vm, name } = request.params
  const id = request.headers['idempotency-key']
  const args = request.body?.args
  // Before the plan: the VM may have ended since.
  const before = await fulfilled(vm, id)
  if (before === undefined) {
    const { blockers } = await client.planCheckpoint(vm, { name, args })
    if (blockers.length > 0) return reply.code(409).send({ blockers })
  }
  // From here on, this handler writes the response itself. The save continues if the client disconnects.
  reply.hijack()
  // Without keep-alive, so that no idle connection delays the end of the service.
  const head = { 'content-type': 'text/event-stream', 'cache-control': 'no-store', connection: 'close' }
  reply.raw.writeHead(200, head)
  const send = (event, data) => reply.raw.write(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`)
  try {
    const options = { recordArguments: args, onProgress: (progress) => send('progress', progress) }
    const checkpoint = before ?? (await fulfil(vm, name, id, options))
    send('created', { vm, name: checkpoint.name, id: checkpoint.id })
  } catch (error) {
    // The data has `retryable`: whether to send the same request again.
    send('failed', error)
  }
  reply.raw.end()
})

server.get('/vms/:vm/checkpoints', ({ params }) => client.listCheckpoints(params.vm))

server.delete('/vms/:vm/checkpoints/:name', async ({ params }, reply) => {
  await client.destroyCheckpoint(params.vm, params.name)
  return reply.code(204).send()
})

/** Of all VMs. */
server.get('/checkpoints', async () => {
  const checkpoints = []
  try {
    for await (const checkpoint of client.listAllCheckpoints()) checkpoints.push(checkpoint)
  } catch (error) {
    // It names the VMs that cannot be listed, and comes after the checkpoints of the others.
    return { checkpoints, error }
  }
  return { checkpoints }
})

/** For every night. With `?dryRun`, nothing is removed. */
server.post('/prune', ({ query }) => client.pruneAll({ ...policy, dryRun: 'dryRun' in query }))

server.get('/health', async (_request, reply) => {
  const findings = await client.diagnose()
  const isHealthy = findings.every(({ level }) => level !== 'problem')
  return reply.code(isHealthy ? 200 : 503).send(findings)
})

// The process ends by itself when nothing is in flight. It does not exit earlier, because some versions of bhyve would
// die during the save.
process.once('SIGTERM', async () => {
  void server.close()
  const isIdle = (timeout) =>
    client.idle({ timeout }).then(
      () => true,
      () => false,
    )
  while (!(await isIdle(Number(REPORT_MS)))) console.error('In flight:', JSON.stringify(client.inFlight()))
})
console.log(await server.listen({ host: '127.0.0.1', port: Number(PORT) }))
