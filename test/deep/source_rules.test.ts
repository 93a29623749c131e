/** The lint rule detects every import of lib/ that is not downwards. `npm run lint:floors` applies it to lib/. */
import { execFile } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { scratch } from '../support/index.js'
// @ts-expect-error: a plain module
import { listed as anyListed } from '../mutants/listed.mjs'

const listed = anyListed as { id: string; file: string; from: string }[]

const root = fileURLToPath(new URL('../..', import.meta.url))

function cruise(directory: string): Promise<{ code: number; output: string }> {
  const program = path.join(root, 'node_modules/dependency-cruiser/bin/dependency-cruise.mjs')
  const args = [program, '--config', '.dependency-cruiser.mjs', 'lib']
  return new Promise((resolve) => {
    execFile(process.execPath, args, { cwd: directory }, (error, stdout) => {
      resolve({ code: Number(error?.code ?? 0), output: stdout })
    })
  })
}

t.test('lib/ contains one loose file', async (t) => {
  const entries = fs.readdirSync(path.join(root, 'lib'), { withFileTypes: true })
  t.same(
    entries.filter((entry) => entry.isFile()).map(({ name }) => name),
    ['index.ts'],
  )
})

const planted = [
  ['base/names.ts', "export type { Store } from '../store/store.js'", 'no-import-up-from-base'],
  ['store/staging/space.ts', "import '../catalog/list.js'", 'no-import-up-from-store-staging'],
  ['bhyve/reply.ts', "import '../store/staging/intent.js'", 'no-import-up-from-bhyve'],
  ['checkpoint/digest.ts', "export type { Slice } from './slice.js'", 'no-cycle'],
  ['simulator/ucl.ts', "import '../checkpoint/metadata.js'", 'simulator-is-independent'],
  ['store/paths.ts', "import '../simulator/ucl.js'", 'only-the-command-line-simulates'],
  ['bhyve/locate.ts', "import '../loose.js'", 'every-file-in-a-directory'],
] as const

t.test('the import rules detect every planted violation, including type-only imports', async (t) => {
  const copy = scratch(t)
  fs.cpSync(path.join(root, 'lib'), path.join(copy, 'lib'), { recursive: true })
  for (const name of ['package.json', 'tsconfig.json', '.dependency-cruiser.mjs'])
    fs.copyFileSync(path.join(root, name), path.join(copy, name))
  fs.writeFileSync(path.join(copy, 'lib/loose.ts'), '')
  for (const [file, plant] of planted) fs.appendFileSync(path.join(copy, 'lib', file), `${plant}\n`)
  const { code, output } = await cruise(copy)
  t.not(code, 0)
  for (const [file, plant, rule] of planted)
    t.match(output, `error ${rule}: lib/${file}`, `${plant} in ${file}`)
})

t.test('the anchor of every mutant occurs exactly once', async (t) => {
  for (const { id, file, from } of listed) {
    const parts = fs.readFileSync(path.join(root, file), 'utf8').split(from)
    t.equal(parts.length, 2, `${id}: occurs once in ${file}`)
  }
})
