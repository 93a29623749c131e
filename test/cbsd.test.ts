/** Runs each command line of docs/cbsd.md unchanged, on a directory with the layout of CBSD. */
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { cbsdLayout, createClient } from 'bhyve-checkpoint'
import { simulatedBhyve } from 'bhyve-checkpoint/simulator'
import { CliWorld } from './support/cli.js'

const page = fs.readFileSync(fileURLToPath(new URL('../docs/cbsd.md', import.meta.url)), 'utf8')
const devices = ['-s0,hostbridge', '-s2,ahci-cd,/cd', '-s3,virtio-blk,/d', '-s4,virtio-net,tap0', '-s31,lpc']

t.test('every command line in docs/cbsd.md works', async (t) => {
  const world = new CliWorld(t)
  const workdir = path.join(world.root, 'jails')
  const checkpoints = path.join(workdir, 'jails-system/freebsd1/checkpoints')
  const { runDirectory } = world
  const client = createClient({ runDirectory, checkpointDirectory: cbsdLayout({ workdir }) })
  // Other files of CBSD, and a VM without checkpoints.
  fs.mkdirSync(checkpoints, { recursive: true })
  fs.mkdirSync(path.join(workdir, 'jails-system/other'), { recursive: true })
  fs.writeFileSync(path.join(workdir, 'jails-system/freebsd1/local.sqlite'), 'configuration')
  await world.start({ vm: 'freebsd1' })
  const bhyve = path.join(world.root, 'bhyve')
  fs.writeFileSync(bhyve, `#!/bin/sh\nexec '${process.execPath}' '${simulatedBhyve}' "$@"\n`, { mode: 0o755 })

  const run = async (line: string): Promise<string> => {
    const [words = '', rest] = line.split(' -- ')
    const own = words
      .split(' ')
      .slice(1)
      .flatMap((word) => (word === '--cbsd' ? ['--cbsd', workdir] : [word]))
    const after =
      rest === undefined
        ? []
        : ['--bhyve', bhyve, '--', '-c2', '-m1M', ...devices, '-o', `rundir=${runDirectory}`, 'freebsd1']
    const result = await world.run(
      { args: [...own, '--run-directory', runDirectory, ...after], bare: true },
      'pipe',
    )
    t.equal(result.status, 0, `${line}: ${result.stderr}`)
    return result.stdout
  }
  /** Removes the manifest. Checkpoints of CBSD consist only of the three files of bhyve. */
  const removeManifest = (name: string): void => fs.rmSync(path.join(checkpoints, `${name}.ckp.manifest`))

  const lines = [...page.matchAll(/^\| `cbsd [^|]*\| `(bhyve-checkpoint [^`]*)`/gm)].map((match) => match[1]!)
  t.equal(lines.length, 9)
  const output: string[] = []
  for (const line of lines) {
    output.push(await run(line))
    if (line.includes('create freebsd1 updated')) removeManifest('updated')
    if (line.includes('pause')) t.match(await client.listVirtualMachines(), [{ state: 'paused' }])
    if (line.includes('suspend')) t.match(await client.listVirtualMachines(), [{ state: 'off' }])
    if (line.includes('restore')) t.match(await client.listVirtualMachines(), [{ state: 'running' }])
  }
  t.match(output[0], `created freebsd1/checkpoint: `)
  t.match(output[0], path.join(checkpoints, 'checkpoint.ckp'))
  t.match(
    output[2],
    /freebsd1 +checkpoint +complete.*\n.*freebsd1 +updated +complete|updated.*\n.*checkpoint/,
  )
  t.same(
    output.at(-1)!.trim().split('\n').sort(),
    ['checkpoint', 'suspend', 'updated'].map((name) => `destroyed freebsd1/${name}`),
  )
  t.same(fs.readdirSync(checkpoints).sort(), ['.staging', 'restore.log'])
  t.equal(fs.readFileSync(path.join(workdir, 'jails-system/freebsd1/local.sqlite'), 'utf8'), 'configuration')
  t.same(await client.listStored(), [])
})

t.test('the default workdir is the documented one', async (t) => {
  const world = new CliWorld(t)
  const { status, stderr } = await world.run(
    { args: ['show', 'freebsd1', 'none', '--cbsd'], bare: true, env: { cbsd_workdir: '' } },
    'pipe',
  )
  t.equal(status, fs.existsSync('/usr/jails/jails-system') ? 5 : 2, stderr)
  if (status === 2) t.match(stderr, "'/usr/jails'")
  t.equal(cbsdLayout().directoryOf('freebsd1'), '/usr/jails/jails-system/freebsd1/checkpoints')
})
