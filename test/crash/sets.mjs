// Checkpoints whose files contain a tag, so that files of different checkpoints can be distinguished.
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const golden = fileURLToPath(new URL('../fixtures/golden/meta/descriptor.meta', import.meta.url))
const metadata = JSON.parse(fs.readFileSync(golden, 'utf8'))
const kernelBytes = 24472

/** Writes `<base>`, `<base>.kern` and `<base>.meta` as a bhyve would. */
export function writeSet(base, tag) {
  const memory = Buffer.alloc(4096 * (1 + (tag % 5)), `ram of ${tag};`)
  const basic = { ...metadata['basic metadata'], memsize: memory.length }
  fs.writeFileSync(`${base}.kern`, Buffer.alloc(kernelBytes, `kern of ${tag};`))
  fs.writeFileSync(base, memory)
  fs.writeFileSync(`${base}.meta`, JSON.stringify({ ...metadata, 'basic metadata': basic }))
}

/** The tag of a published checkpoint. Throws if its files belong to different checkpoints. */
export function tagOf(directory, name) {
  const read = (suffix) => fs.readFileSync(path.join(directory, `${name}.ckp${suffix}`), 'latin1')
  const tags = [/ram of (\d+);/.exec(read(''))?.[1], /kern of (\d+);/.exec(read('.kern'))?.[1]]
  if (fs.existsSync(path.join(directory, `${name}.ckp.manifest`))) {
    tags.push(/tag (\d+)/.exec(JSON.parse(read('.manifest')).dialect ?? `tag ${tags[0]}`)?.[1])
  }
  if (new Set(tags).size !== 1)
    throw new Error(`'${name}' has files of different checkpoints: ${tags.join(', ')}`)
  return Number(tags[0])
}
