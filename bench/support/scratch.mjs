/** A directory for one benchmark, on the measured disk: in `BENCH_DIRECTORY`, or the system's temporary directory. */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'

export class Scratch {
  path = fs.mkdtempSync(path.join(process.env.BENCH_DIRECTORY ?? os.tmpdir(), 'bhyve-checkpoint-bench-'))

  at(...names) {
    return path.join(this.path, ...names)
  }

  makeDirectory(...names) {
    fs.mkdirSync(this.at(...names), { recursive: true })
    return this.at(...names)
  }

  remove() {
    fs.rmSync(this.path, { recursive: true, force: true })
  }
}

/** Flushes what one round left unwritten, so that it does not slow the next one down. */
export function settleDisk() {
  execFileSync('sync')
}
