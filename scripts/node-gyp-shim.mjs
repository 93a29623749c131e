#!/usr/bin/env node
// prebuildify calls this instead of node-gyp, and cmake-js builds. Only the arguments that cmake-js shares with
// node-gyp are passed on. The addon is built against Node-API, so the target version does not matter.
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const shared = process.argv.slice(2).flatMap((argument) => {
  if (argument.startsWith('--arch=')) return ['--arch', argument.slice('--arch='.length)]
  return argument === '--debug' ? ['--debug'] : []
})
const cmakeJs = path.join(root, 'node_modules', '.bin', 'cmake-js')
const { status } = spawnSync(cmakeJs, ['rebuild', '--log-level', 'error', ...shared], {
  cwd: root,
  stdio: 'inherit',
})
process.exit(status ?? 1)
