/** The supervisor's loop of examples/: a suspended VM stays off until the next run restores it. */
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { type CheckpointClient, createClient } from 'bhyve-checkpoint'
import { simulatedBhyve } from 'bhyve-checkpoint/simulator'
import { scratch, until } from '../../support/index.js'

interface Loop {
  client: CheckpointClient
  /** Resolves when the VM is to stay off. */
  run(): Promise<string>
  lines: string[]
  /** Defines how the next bhyve behaves. */
  next(script: string): void
}

interface Example {
  runVm: (
    client: CheckpointClient,
    options: { vm: string; bhyve: string; args: string[]; log: (line: string) => void },
  ) => Promise<string>
}

async function loop(t: Test, suspendExitCode: number): Promise<Loop> {
  const { runVm } = (await import(new URL('../../../examples/run-loop.mjs', import.meta.url).href)) as Example
  const root = scratch(t)
  const runDirectory = path.join(root, 'run')
  fs.mkdirSync(runDirectory)
  const bhyve = path.join(root, 'bhyve')
  const options = JSON.stringify({ suspendExitCode })
  const simulate = `NODE_OPTIONS= SIMULATED_BHYVE_OPTIONS='${options}' exec '${process.execPath}' '${simulatedBhyve}' "$@"`
  const next = (script: string): void => {
    fs.writeFileSync(`${bhyve}.new`, `#!/bin/sh\n${script}\n`, { mode: 0o755 })
    fs.renameSync(`${bhyve}.new`, bhyve)
  }
  next(simulate)
  const client = createClient({ runDirectory, checkpointDirectory: path.join(root, 'c') })
  const lines: string[] = []
  const args = ['-c2', '-m4M', '-s0,hostbridge', '-s31,lpc', '-o', `rundir=${runDirectory}`, 'vm1']
  const run = (): Promise<string> =>
    runVm(client, { vm: 'vm1', bhyve, args, log: (line) => lines.push(line) })
  return { client, run, lines, next: (script) => next(script.replace('SIMULATE', simulate)) }
}

async function running({ client }: Loop): Promise<void> {
  await until(async () => (await client.listVirtualMachines())[0]?.state === 'running', 'the VM to run')
}

for (const suspendExitCode of [0, 5]) {
  t.test(
    `run loop: after a suspend with status ${suspendExitCode}, the VM stays off until the next run restores it`,
    async (t) => {
      const world = await loop(t, suspendExitCode)
      const first = world.run()
      await running(world)
      await world.client.suspend('vm1')
      t.equal(await first, 'suspended')
      t.same(world.lines, ['starting', `bhyve ended with status ${suspendExitCode}`])
      const second = world.run()
      await until(() => world.lines.includes('restoring suspend'), 'the restore')
      await running(world)
      // The older state was restored, so it no longer counts.
      await world.client.suspend('vm1', { name: 'again' })
      t.equal(await second, 'suspended')
      t.match(await world.client.suspendedCheckpoint('vm1'), { name: 'again' })
    },
  )
}

t.test('run loop: restarts a guest that reboots, but not one that powers off', async (t) => {
  const world = await loop(t, 0)
  const flag = path.join(scratch(t), 'rebooted')
  world.next(`if [ ! -e '${flag}' ]; then : >'${flag}'; exit 0; fi; exit 1`)
  t.equal(await world.run(), 'powered-off')
  t.same(world.lines, ['starting', 'bhyve ended with status 0', 'starting', 'bhyve ended with status 1'])
  world.next('exit 4')
  t.equal(await world.run(), 'failed')
})
