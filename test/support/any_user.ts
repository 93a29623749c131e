/** Makes the scripts of `test/support` readable for any user, because perhaps only its owner can enter the checkout. */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { root, runtimeDependencies } from './package.js'

const parts = ['package.json', 'dist', 'build/Release/bhyve_checkpoint.node', 'test/support']
let copy: string | undefined

/** The path of the script in a copy of the package. This process makes the copy once and removes it at its exit. */
export function forAnyUser(script: string): string {
  copy ??= makeCopy()
  return path.join(copy, 'test/support', script)
}

function makeCopy(): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'bc-any-user-'))
  process.once('exit', () => fs.rmSync(directory, { recursive: true, force: true }))
  const dependencies = runtimeDependencies().map((name) => path.join('node_modules', name))
  for (const part of [...parts, ...dependencies])
    fs.cpSync(path.join(root, part), path.join(directory, part), { recursive: true })
  allow(directory)
  return directory
}

function allow(directory: string): void {
  fs.chmodSync(directory, 0o755)
  for (const entry of fs.readdirSync(directory, { withFileTypes: true })) {
    const file = path.join(directory, entry.name)
    if (entry.isDirectory()) allow(file)
    else fs.chmodSync(file, 0o755)
  }
}
