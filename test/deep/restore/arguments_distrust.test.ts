/** Arguments that a checkpoint records, and what others could make of them. */
import fs from 'node:fs'
import path from 'node:path'
import { inspect } from 'node:util'
import t, { type Test } from 'tap'
import { rejection } from '../../support/index.js'
import { codesOf, World } from '../../support/restore_world.js'

const asRoot = process.geteuid?.() === 0 ? {} : { skip: 'needs root to change an owner' }

async function recorded(t: Test, extra: readonly string[] = []): Promise<World> {
  const world = new World(t)
  world.args.unshift(...extra)
  const pid = await world.begun()
  await world.client.createCheckpoint('vm1', { name: 'a', recordArguments: world.args })
  await world.kill(pid)
  return world
}

const changes: Record<string, (world: World) => Promise<unknown>> = {
  label: ({ client }) => client.labelCheckpoint('vm1', 'a', { x: 'y' }),
  pin: ({ client }) => client.pinCheckpoint('vm1', 'a'),
  'failed restore': (world) =>
    rejection(
      world.client.restore('vm1', 'a', { args: world.args, bhyve: world.script({ instead: 'exit 1' }) }),
    ),
}

for (const [name, change] of Object.entries(changes)) {
  t.test(`untrusted arguments: ${name} does not make them trusted`, asRoot, async (t) => {
    for (const spoil of [
      (file: string) => fs.chownSync(file, 1234, 0),
      (file: string) => fs.chmodSync(file, 0o660),
    ]) {
      const world = await recorded(t)
      const file = path.join(world.directory, 'a.ckp.manifest')
      spoil(file)
      t.match(await rejection(world.client.planRestore('vm1', 'a')), { code: 'ERR_PERMISSION' })
      await change(world)
      const bhyve = world.script()
      t.match(await rejection(world.client.restore('vm1', 'a', { bhyve })), {
        code: /ERR_PERMISSION|ERR_INVALID_OPTION/,
      })
      t.equal(world.pidOf(bhyve), 0, 'nothing was started')
    }
  })
}

t.test('recorded arguments: the output of bhyve in an error has no password', async (t) => {
  const world = await recorded(t, ['-s', '29,fbuf,tcp=127.0.0.1:5999,password=hunter2'])
  // bhyve prints a whole option that it rejects (pci_parse_slot_usage() in usr.sbin/bhyve/pci_emul.c).
  const bhyve = world.script({ instead: `echo "Invalid PCI slot info field \\"$2\\"" >&2; exit 1` })
  const error = await rejection(world.client.restore('vm1', 'a', { bhyve }))
  t.match(error, { code: 'ERR_RESTORE_FAILED', reply: /Invalid PCI slot info field/ })
  t.notMatch(inspect(error, { depth: 9, showHidden: true }) + JSON.stringify(error), 'hunter2')
})

t.test('recorded arguments: a VM that runs with a relative run directory is found', async (t) => {
  const world = new World(t)
  const before = process.cwd()
  t.teardown(() => process.chdir(before))
  world.args.splice(-2, 1, 'rundir=run')
  process.chdir(world.root)
  await world.begun()
  await world.client.createCheckpoint('vm1', { name: 'a', recordArguments: world.args })
  process.chdir(before)
  const elsewhere = path.join(world.root, 'elsewhere')
  const client = world.newClient({ runDirectory: elsewhere })
  t.match(codesOf(await client.planRestore('vm1', 'a')), ['already-running'])
})
