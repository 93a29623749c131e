/** Kills a process in the middle of a rollback: the next restore finishes it, and starts the VM once. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { childEnvironment } from '../../support/index.js'
import { isAlive } from '../../support/restore_world.js'
import { DiskWorld } from '../../support/disk_world.js'

const script = fileURLToPath(new URL('../../support/rolling_back.mjs', import.meta.url))

/** Resolves when the process was killed with this many disks put back. */
async function killed(world: DiskWorld, bhyve: string, disksBack: number): Promise<void> {
  const { runDirectory, checkpointDirectory, log, args } = world
  const words = [
    script,
    runDirectory,
    checkpointDirectory,
    bhyve,
    log,
    String(disksBack),
    JSON.stringify(args),
  ]
  const child = spawn(process.execPath, words, { env: childEnvironment(), stdio: 'inherit' })
  const [, signal] = (await once(child, 'exit')) as [unknown, string]
  if (signal !== 'SIGKILL') throw new Error(`The process was not killed: ${signal}`)
}

for (const disks of ['rollback', 'keep'] as const) {
  for (const disksBack of [0, 1, 2]) {
    t.test(`kill: with ${disksBack} of two disks put back, a restore with '${disks}' finishes`, async (t) => {
      const world = new DiskWorld(t)
      await world.savedWithDisks()
      const scripts = [world.script(), world.script()] as const
      await killed(world, scripts[0], disksBack)
      t.equal(world.pidOf(scripts[0]), 0, 'the VM was not started')
      t.equal(world.contents().filter((content) => content === 'then').length, disksBack)
      const { id } = JSON.parse(fs.readFileSync(world.rollbackRecord, 'utf8')) as { id: string }
      const options = { args: world.args, bhyve: scripts[1], disks }
      const { pid, keptDisks } = await world.with().restore('vm1', 'a', options)
      t.ok(isAlive(pid))
      t.equal(world.pidOf(scripts[0]), 0, 'the VM was started once')
      t.strictSame(world.contents(), ['then', 'then'])
      t.strictSame(
        keptDisks,
        world.images.map((image) => `${image}.${id}`),
      )
      for (const kept of keptDisks ?? []) t.equal(fs.readFileSync(kept, 'utf8'), 'now', 'nothing is lost')
      t.ok(
        world.calls().every((call) => call.id === id),
        'always the same id',
      )
      t.notOk(fs.existsSync(world.rollbackRecord))
    })
  }
}
