/**
 * examples/http-service.mjs is killed again and again while callers send requests to it and repeat them, as its header
 * describes. `ORCHESTRATOR_KILLS=200` kills it more often. `SEED` repeats the choice of the moments.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedFleet } from 'bhyve-checkpoint/simulator'
import { checkpointFiles, childEnvironment, scratch, tree } from '../support/index.js'
import { generator } from '../support/random.mjs'

const program = path.join(import.meta.dirname, '../../examples/http-service.mjs')
const seed = Number(process.env.SEED ?? Date.now() % 1_000_000)
const kills = Number(process.env.ORCHESTRATOR_KILLS ?? '10')
const vms = ['vm1', 'vm2', 'vm3', 'vm4']
const callersPerVm = 2
/** A save takes 32 ms, so that most kills hit one. */
const guest = { memoryBytes: 128 * 1024, writeRate: 4 * 1024 * 1024 }

/** The service, which is started again after each kill. */
class Service {
  readonly #env: NodeJS.ProcessEnv
  #child: ChildProcess | undefined
  #address = Promise.resolve('')
  #isOver = false
  /** Called with each part of each stream. */
  onEvents: (text: string) => void = () => undefined

  constructor(env: Record<string, string>) {
    this.#env = childEnvironment({ ...env, TOKEN: 'secret', PORT: '0' })
  }

  start(): Promise<string> {
    this.#assertNotOver()
    const child = spawn(process.execPath, [program], { env: this.#env, stdio: ['ignore', 'pipe', 'inherit'] })
    this.#child = child
    this.#address = once(child.stdout, 'data').then(([line]) => String(line).trim())
    return this.#address
  }

  /** Resolves with the exit status. */
  async drain(): Promise<number | null> {
    const child = this.#child!
    const ended = once(child, 'exit')
    child.kill('SIGTERM')
    const [status] = (await ended) as [number | null]
    return status
  }

  /** Ends the service, and all callers, who would repeat their requests for ever. */
  stop(): void {
    this.#isOver = true
    this.#child?.kill('SIGKILL')
  }

  #assertNotOver(): void {
    if (this.#isOver) throw new Error('The service is not started again')
  }

  async restart(): Promise<void> {
    const child = this.#child!
    const ended = once(child, 'exit')
    // Before the kill: a request that fails because of it is repeated at the next address.
    this.#address = ended.then(() => this.start())
    child.kill('SIGKILL')
    await this.#address
  }

  /** Sends a request once. Resolves with the response so far if the service is killed meanwhile. */
  async send({ vm, key }: Request): Promise<{ status?: number; text: string }> {
    const answer: { status?: number; text: string } = { text: '' }
    const headers = { authorization: 'Bearer secret', 'idempotency-key': key }
    this.#assertNotOver()
    const url = `${await this.#address}/vms/${vm}/checkpoints/${key}`
    try {
      const { status, body } = await fetch(url, { method: 'POST', headers })
      answer.status = status
      for await (const piece of body!.pipeThrough(new TextDecoderStream())) {
        answer.text += piece
        this.onEvents(piece)
      }
    } catch {
      // The connection broke.
    }
    return answer
  }
}

interface Request {
  vm: string
  key: string
}

/** All callers together: what they were told, and what happened to them. */
class Callers {
  readonly #service: Service
  /** The id that the service reported first for each key. */
  readonly ids = new Map<string, string>()
  interrupted = 0
  /** Requests that were fulfilled although their caller was not told. */
  fulfilledUnheard = 0
  readonly contradictions: string[] = []

  constructor(service: Service) {
    this.#service = service
  }

  /** Repeats a request until it is fulfilled. Rejects if the service refuses it for good. */
  async request(request: Request): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      const { status, text } = await this.#service.send(request)
      const [, event, data] = /event: (created|failed)\ndata: (.*)\n\n$/.exec(text) ?? []
      const result = JSON.parse(data ?? '{}') as { id?: string; retryable?: boolean }
      if (event === 'created') {
        this.#note(request, result.id!, attempt, text)
        return
      }
      const isRefused = event === 'failed' || (status !== undefined && status !== 200)
      if (isRefused && result.retryable !== true)
        throw new Error(`${request.key} was refused: ${String(status)} ${text}`)
      this.interrupted++
    }
  }

  #note({ key }: Request, id: string, attempt: number, text: string): void {
    const first = this.ids.get(key)
    this.ids.set(key, first ?? id)
    const isSaved = text.includes('"phase":"saving"')
    if (first === undefined && attempt > 1 && !isSaved) this.fulfilledUnheard++
    if (first !== undefined && first !== id) this.contradictions.push(`${key}: ${first}, then ${id}`)
  }

  /** Sends requests until `isOver`: some of them twice at once, and some again after they were fulfilled. */
  async keepRequesting(
    vm: string,
    caller: string,
    random: () => number,
    isOver: () => boolean,
  ): Promise<void> {
    for (let count = 1; !isOver(); count++) {
      const request = { vm, key: `${caller}.${count}` }
      await Promise.all(Array.from({ length: random() < 0.2 ? 2 : 1 }, () => this.request(request)))
      if (random() < 0.3) await this.request(request)
    }
  }
}

/** Resolves after this many events that contain `word`. */
function events(service: Service, word: string, count: number): Promise<void> {
  return new Promise((resolve) => {
    let left = count
    service.onEvents = (text) => {
      left -= text.split(word).length - 1
      if (left <= 0) resolve()
    }
  })
}

/** Half of the kills are at any time, the others around a commit point. */
async function killRepeatedly(service: Service, random: () => number): Promise<void> {
  for (let kill = 1; kill <= kills; kill++) {
    if (random() < 0.5) await events(service, 'event: ', 1 + Math.floor(random() * 40))
    else await events(service, '"phase":"publishing"', 1 + Math.floor(random() * 4))
    // Not only right after an event.
    await delay(random() * 10)
    await service.restart()
  }
}

t.test('a service that is killed at random fulfils each request exactly once', async (t: Test) => {
  t.comment(`SEED=${seed}`)
  const fleet = await SimulatedFleet.start({ vms, ...guest })
  t.teardown(() => fleet.stop())
  const { runDirectory } = fleet
  const checkpointDirectory = scratch(t)
  const service = new Service({ RUN_DIRECTORY: runDirectory, CHECKPOINT_DIRECTORY: checkpointDirectory })
  t.teardown(() => service.stop())
  await service.start()

  const callers = new Callers(service)
  let isOver = false
  const requesting = vms.flatMap((vm, index) =>
    Array.from({ length: callersPerVm }, (_, caller) =>
      callers.keepRequesting(
        vm,
        `${vm}-${caller}`,
        generator(seed + index * callersPerVm + caller + 1),
        () => isOver,
      ),
    ),
  )
  const killing = killRepeatedly(service, generator(seed)).finally(() => (isOver = true))
  await Promise.all([killing, ...requesting])
  // After a later save by the same bhyve, nothing of an earlier one is kept.
  await Promise.all(vms.map((vm) => callers.request({ vm, key: `${vm}-last` })))
  t.equal(await service.drain(), 0, 'the service ends when nothing is in flight')

  const { ids, interrupted, fulfilledUnheard, contradictions } = callers
  t.comment(`${ids.size} requests, ${interrupted} interrupted, ${fulfilledUnheard} fulfilled unheard`)
  t.ok(interrupted >= kills, 'the kills hit requests')
  t.same(contradictions, [], 'a request never has two results')
  const client = createClient({ runDirectory, checkpointDirectory })
  const found = new Map<string, string>()
  for await (const { vm, name, id = '', state, labels } of client.listAllCheckpoints()) {
    const key = labels?.request ?? ''
    t.match({ state, name, owner: labels?.owner }, { state: 'complete', name: key, owner: 'http-service' })
    t.notOk(found.has(key), `one checkpoint for ${key}`)
    found.set(key, id)
    t.match(await client.verifyCheckpoint(vm, name, { depth: 'content' }), { ok: true, depth: 'content' })
  }
  t.same(
    sorted(found),
    sorted(ids),
    'each request has the checkpoint that was reported, and there is no other',
  )
  await client.idle()
  for (const vm of vms) {
    const directory = path.join(checkpointDirectory, vm)
    const saved = [...ids.keys()].filter((key) => key.startsWith(`${vm}-`))
    t.equal(checkpointFiles(directory).length, saved.length * 4, `${vm}: no other files`)
    t.same(tree(path.join(directory, '.staging')), [], `${vm}: no stage is left`)
  }
  t.same(
    (await client.listVirtualMachines()).map(({ vm, state }) => ({ vm, state })),
    vms.map((vm) => ({ vm, state: 'running' })),
  )
})

function sorted(map: ReadonlyMap<string, string>): [string, string][] {
  return [...map].sort(([a], [b]) => (a < b ? -1 : 1))
}
