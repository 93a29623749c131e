/** Every JavaScript block of the documents runs as it stands, but for where sockets and checkpoints are. */
import { execFile } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { SimulatedBhyve } from 'bhyve-checkpoint/simulator'
import { childEnvironment, scratch } from './support/index.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const documents = [
  'README.md',
  ...fs.readdirSync(path.join(root, 'docs')).map((name) => path.join('docs', name)),
]

/** The block with this machine's places in the place of the documented ones. */
function placed(block: string, runDirectory: string, checkpointDirectory: string): string {
  return block
    .replaceAll(
      'createClient({ checkpointDirectory: ',
      `createClient({ runDirectory: '${runDirectory}', checkpointDirectory: `,
    )
    .replaceAll("'/zroot/checkpoints'", `'${checkpointDirectory}'`)
    .replaceAll("'/tmp/checkpoints'", `'${checkpointDirectory}/other'`)
}

t.test('every block runs', async (t) => {
  // Inside the package, so that it finds itself by its name.
  const folder = fs.mkdtempSync(path.join(root, 'build-docs-'))
  t.teardown(() => fs.rmSync(folder, { recursive: true }))
  let blocks = 0
  for (const document of documents.filter((name) => name.endsWith('.md'))) {
    const text = fs.readFileSync(path.join(root, document), 'utf8')
    for (const match of text.matchAll(/^```js\n(.*?)^```$/gms)) {
      // One for each: some blocks end their VM.
      const bhyve = await SimulatedBhyve.start({ vm: 'vm1', memoryBytes: 1024 * 1024 })
      const file = path.join(folder, `${++blocks}.mjs`)
      fs.writeFileSync(file, placed(match[1]!, bhyve.runDirectory, scratch(t)))
      const [error, stderr] = await run(file)
      t.equal(error, null, `${document}, block ${blocks}`)
      t.equal(stderr, '', `${document}, block ${blocks}: says nothing on standard error`)
      await bhyve.stop()
    }
  }
  t.ok(blocks >= 2)
})

function run(file: string): Promise<[Error | null, string]> {
  return new Promise((resolve) => {
    execFile(
      process.execPath,
      [file],
      { env: childEnvironment(), timeout: 30_000 },
      (error, _stdout, stderr) => {
        resolve([error, stderr])
      },
    )
  })
}

t.test('every error code and problem is explained', async (t) => {
  const text = fs.readFileSync(path.join(root, 'docs/errors.md'), 'utf8')
  const explained = new Set([...text.matchAll(/`([A-Za-z_-]+)`/g)].map((match) => match[1]!))
  const errors = fs.readFileSync(path.join(root, 'lib/errors.ts'), 'utf8').match(/'ERR_[A-Z_]+'/g)!
  const types = fs.readFileSync(path.join(root, 'lib/types.ts'), 'utf8')
  const problems = types
    .slice(types.indexOf('export interface Problem'), types.indexOf('message: string'))
    .match(/'[a-z-]+'/g)!
  const restoring = types
    .slice(types.indexOf('export type RestoreBlocker'), types.indexOf('export interface VirtualMachine'))
    .match(/'[a-z-]+'/g)!
  t.equal(restoring.length, 17)
  for (const code of [...errors, ...problems, ...restoring]) t.ok(explained.has(code.slice(1, -1)), code)
})

t.test('every line of the trust model names a test that exists', async (t) => {
  const text = fs.readFileSync(path.join(root, 'SECURITY.md'), 'utf8')
  const model = text.slice(text.indexOf('### Who may ask'), text.indexOf('## What is not protected'))
  const claims = model.split(/^- /m).slice(1)
  t.ok(claims.length > 30, `${claims.length} lines`)
  for (const claim of claims) {
    // A paragraph or a heading that follows does not belong to it.
    const [line] = claim.replace(/\n\n[^]*/, '').split('\n\n')
    const named = [...line!.replace(/\s+/g, ' ').matchAll(/\[([a-z_]+\.test\.ts): ([^\]]+)\]/g)]
    t.ok(named.length > 0, `names a test: ${line}`)
    for (const [, file, name] of named) t.ok(testsIn(file!).has(name!), `${file}: ${name}`)
  }
})

function testsIn(file: string): Set<string> {
  const source = fs.readFileSync(path.join(root, 'test', file), 'utf8')
  const names = source.matchAll(/^ *t\.test\(\s*(['"])(.*?)\1,/gms)
  return new Set([...names].map((match) => match[2]!))
}
