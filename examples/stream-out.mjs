// Writes a checkpoint as a tar archive into any Writable, with backpressure. Holes are not read, sent or filled.
//
//   set -o pipefail
//   node stream-out.mjs vm1 before-upgrade | ssh other-host "$(cat receive.sh)"
//
// receive.sh publishes the checkpoint only when all of it has arrived and the name is free. A partial checkpoint would
// be listed as damaged, and pruned. If the transfer fails, remove `.arriving` by hand.
//
//   set -e
//   cd /zroot/checkpoints/vm1 && mkdir .arriving
//   tar -xf - -C .arriving
//   for file in .arriving/*; do [ ! -e "${file##*/}" ]; done
//   mv .arriving/*.ckp.* . && mv .arriving/*.ckp . && rmdir .arriving
//
// Check the exit status of the pipe here, and run `bhyve-checkpoint verify vm1 before-upgrade --content` there.
//
// The archive is made by the system's tar, which queries the file system for holes (FreeBSD's by default, GNU tar with
// --sparse). The archive libraries of npm would read and send every zero.
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { realpathSync } from 'node:fs'
import path from 'node:path'
import { pipeline } from 'node:stream/promises'
import { fileURLToPath } from 'node:url'
import { createClient } from 'bhyve-checkpoint'

const isGnu = execFileSync('tar', ['--version'], { encoding: 'utf8' }).includes('GNU')
const sparse = isGnu ? ['--sparse', '--format=posix'] : ['--format', 'pax']

/** Rejects if the checkpoint was replaced meanwhile, because the archive can then contain files of both. */
export async function streamOut(client, vm, name, writable, { end = true } = {}) {
  const checkpoint = await client.getCheckpoint(vm, name)
  const directory = path.dirname(checkpoint.path)
  // `./` keeps tar from reading a name that begins with a dash or an @ as an option. `.ckp` comes last, because the
  // checkpoint does not exist without it.
  const { memory, ...others } = checkpoint.files
  const files = [...Object.values(others), memory].map((file) => `./${path.basename(file)}`)
  const tar = spawn('tar', [...sparse, '-C', directory, '-cf', '-', ...files], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const ended = once(tar, 'close')
  try {
    await pipeline(tar.stdout, writable, { end })
  } finally {
    // If the writable failed, close the pipe, so that tar exits too.
    tar.stdout.destroy()
  }
  const [code, signal] = await ended
  if (code !== 0) throw new Error(`tar ended with ${signal ?? `status ${code}`}`)
  const { createdAt } = await client.getCheckpoint(vm, name)
  if (createdAt.getTime() !== checkpoint.createdAt.getTime())
    throw new Error(`Checkpoint '${name}' was replaced meanwhile`)
}

if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const [vm, name] = process.argv.slice(2)
  const client = createClient({ checkpointDirectory: process.env.CHECKPOINT_DIRECTORY })
  await streamOut(client, vm, name, process.stdout, { end: false })
}
