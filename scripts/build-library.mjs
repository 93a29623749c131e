// Builds the TypeScript into dist/, and puts the code of the threads into one file and that of the commands into few: Node
// takes longer to find and load hundreds of files than to start a thread, or a program.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const { bin } = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8'))

fs.rmSync(path.join(root, 'dist'), { recursive: true, force: true })
tool('tsc', '-p', 'tsconfig.json')
bundle('dist/worker/worker.js', '--outfile=dist/worker/worker.js')
// Code that several of them use goes into dist/commands, which is as deep as dist/base: `packageFile` works in both.
bundle(
  ...Object.values(bin),
  ...['--splitting', '--outdir=dist', '--outbase=dist', '--chunk-names=commands/chunk-[hash]'],
)

function bundle(...args) {
  const options = ['--bundle', '--platform=node', '--format=esm', '--target=node20', '--packages=external']
  tool('esbuild', ...args, ...options, '--allow-overwrite', '--log-level=warning')
}

function tool(name, ...args) {
  const { status, error } = spawnSync(path.join(root, 'node_modules/.bin', name), args, {
    cwd: root,
    stdio: 'inherit',
  })
  if (status === 0) return
  if (error !== undefined) console.error(error.message)
  process.exit(1)
}
