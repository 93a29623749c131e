// `npm run demo` shows the life of a checkpoint on a simulated VM.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import fs from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve, simulatedBhyve } from 'bhyve-checkpoint/simulator'

const MiB = 1024 * 1024
/** Longer waits mean that something is wrong. */
const deadline = AbortSignal.timeout(120_000)
const scratch = await fs.mkdtemp(path.join(os.tmpdir(), 'bhyve-checkpoint-demo-'))
const checkpointDirectory = path.join(scratch, 'checkpoints')

let lastPhase = ''

function title(text) {
  console.log(`\n\u001b[1m${text}\u001b[0m`)
}

function size(bytes) {
  return `${(bytes / MiB).toFixed(0)} MiB`
}

function showProgress({ phase, bytes, totalBytes, elapsedMs }) {
  const of = totalBytes === undefined ? '' : ` of ${size(totalBytes)}`
  const line = `  ${phase.padEnd(10)} ${size(bytes)}${of}, ${(elapsedMs / 1000).toFixed(1)} s`
  if (process.stdout.isTTY) process.stdout.write(`\r\u001b[K${line}${phase === 'publishing' ? '\n' : ''}`)
  else if (phase !== lastPhase) console.log(line)
  lastPhase = phase
}

async function show(client) {
  for (const { name, state, createdAt, memoryBytes = 0, storedBytes = 0 } of await client.listCheckpoints(
    'ubuntu',
  )) {
    const time = createdAt?.toISOString().slice(0, 19).replace('T', ' ')
    console.log(
      `  ${name.padEnd(16)} ${state}  ${time}  RAM ${size(memoryBytes)}, on disk ${size(storedBytes)}`,
    )
  }
}

try {
  title("A simulated VM 'ubuntu' with 256 MiB of RAM starts")
  const bhyve = await SimulatedBhyve.start({ vm: 'ubuntu', memoryBytes: 256 * MiB, writeRate: 256 * MiB })
  const client = createClient({ runDirectory: bhyve.runDirectory, checkpointDirectory })
  console.log(`  process ${bhyve.pid}, socket ${bhyve.socketPath}`)

  title('createCheckpoint: resolves when the checkpoint is complete and durable')
  const first = await client.createCheckpoint('ubuntu', { name: 'before-upgrade', onProgress: showProgress })
  console.log(`  ${first.path}`)
  console.log(`  ${first.cpus} vCPUs, devices: ${first.devices.join(', ')}`)

  title('listCheckpoints and verifyCheckpoint')
  await show(client)
  const report = await client.verifyCheckpoint('ubuntu', 'before-upgrade', { depth: 'content' })
  console.log(`  verified: ${report.ok ? 'complete' : 'damaged'} (${report.depth})`)
  assert(report.ok)

  title('The same name again: the old checkpoint stays until the new one is published')
  await client.createCheckpoint('ubuntu', { name: 'before-upgrade', onProgress: showProgress })
  await show(client)
  await bhyve.stop()

  title('The same VM on a host whose disk runs full while RAM is written')
  const fault = { at: 'memory', kind: 'no-space' }
  const failing = await SimulatedBhyve.start({ vm: 'ubuntu', memoryBytes: 256 * MiB, fault })
  const second = createClient({ runDirectory: failing.runDirectory, checkpointDirectory })
  const error = await second.createCheckpoint('ubuntu', { name: 'before-upgrade' }).catch((reason) => reason)
  assert.equal(error.code, 'ERR_CHECKPOINT_FAILED')
  console.log(`  rejected with ${error.code}; the VM is ${error.vmState}`)
  for (const { code, message } of error.problems) console.log(`    ${code}: ${message}`)
  console.log('  The old checkpoint is still there and complete:')
  await show(second)
  assert((await second.verifyCheckpoint('ubuntu', 'before-upgrade', { depth: 'content' })).ok)
  await failing.stop()

  title('suspend: the VM is saved and powered off, then restored once')
  const args = [
    '-c',
    '2',
    '-m',
    '256M',
    '-s',
    '0,hostbridge',
    '-s',
    '31,lpc',
    '-o',
    `rundir=${scratch}`,
    'ubuntu',
  ]
  spawn(simulatedBhyve, args, {
    stdio: 'ignore',
    detached: true,
    env: { ...process.env, NODE_OPTIONS: '' },
  }).unref()
  const third = createClient({ runDirectory: scratch, checkpointDirectory })
  while ((await third.listVirtualMachines())[0]?.state !== 'running') {
    await setTimeout(20, undefined, { signal: deadline })
  }
  const state = await third.suspend('ubuntu', { onProgress: showProgress })
  console.log(`  saved as '${state.name}', powered off: ${state.poweredOff}`)
  const restored = await third.restore('ubuntu', 'suspend', { args, bhyve: simulatedBhyve })
  console.log(`  restored: process ${restored.pid}, output in ${restored.logFile}`)
  process.kill(restored.pid, 'SIGKILL')
  await restored.exited
  const refusal = await third
    .restore('ubuntu', 'suspend', { args, bhyve: simulatedBhyve })
    .catch((reason) => reason)
  assert.equal(refusal.code, 'ERR_RESTORE_BLOCKED')
  console.log(`  a second restore is rejected with ${refusal.code}`)
  for (const { code, message } of refusal.blockers) console.log(`    ${code}: ${message}`)

  title('destroyAll')
  console.log(`  removed: ${(await second.destroyAll('ubuntu')).join(', ')}`)
  const left = await second.listCheckpoints('ubuntu')
  console.log(`  left: ${left.length} checkpoints`)
  assert.equal(left.length, 0)
} finally {
  await fs.rm(scratch, { recursive: true, force: true })
}
