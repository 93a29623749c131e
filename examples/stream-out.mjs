// A checkpoint as a tar archive into any Writable, as fast as that takes it. Holes stay holes, on the way too.
//
//   set -o pipefail
//   node stream-out.mjs vm1 before-upgrade | ssh other-host "$(cat receive.sh)"
//
// with receive.sh, which puts it under a name that is free there, and only once all of it has arrived: half a checkpoint
// would be listed as damaged, and pruned. What stopped half-way stays in `.arriving`, to be removed by hand.
//
//   set -e
//   cd /zroot/checkpoints/vm1 && mkdir .arriving
//   tar -xf - -C .arriving
//   for file in .arriving/*; do [ ! -e "${file##*/}" ]; done
//   mv .arriving/*.ckp.* . && mv .arriving/*.ckp . && rmdir .arriving
//
// Look at the status of the pipe here, and `bhyve-checkpoint verify vm1 before-upgrade --content` there.
//
// The system's own tar does it: it finds holes by asking the file system (FreeBSD's does so by itself, GNU tar with
// --sparse), where the archive libraries of npm would read and send every zero.
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { realpathSync } from 'node:fs'
import path from 'node:path'
import { pipeline } from 'node:stream/promises'
import { fileURLToPath } from 'node:url'
import { createClient } from 'bhyve-checkpoint'

const isGnu = execFileSync('tar', ['--version'], { encoding: 'utf8' }).includes('GNU')
const sparse = isGnu ? ['--sparse', '--format=posix'] : ['--format', 'pax']

/** Rejects where the set was replaced meanwhile: the archive may then be of both. */
export async function streamOut(client, vm, name, writable, { end = true } = {}) {
  const checkpoint = await client.getCheckpoint(vm, name)
  const directory = path.dirname(checkpoint.path)
  // `./`: a name that begins with a dash or an @ is no option. `.ckp` last: while it is missing there is no checkpoint.
  const { memory, ...others } = checkpoint.files
  const files = [...Object.values(others), memory].map((file) => `./${path.basename(file)}`)
  const tar = spawn('tar', [...sparse, '-C', directory, '-cf', '-', ...files], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const ended = once(tar, 'close')
  try {
    await pipeline(tar.stdout, writable, { end })
  } finally {
    // A writable that failed: nobody reads any more, and tar ends too.
    tar.stdout.destroy()
  }
  const [code, signal] = await ended
  if (code !== 0) throw new Error(`tar ended with ${signal ?? `status ${code}`}`)
  const { createdAt } = await client.getCheckpoint(vm, name)
  if (createdAt.getTime() !== checkpoint.createdAt.getTime())
    throw new Error(`'${name}' was replaced meanwhile`)
}

if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const [vm, name] = process.argv.slice(2)
  const client = createClient({ checkpointDirectory: process.env.CHECKPOINT_DIRECTORY })
  await streamOut(client, vm, name, process.stdout, { end: false })
}
