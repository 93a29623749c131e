/** The package as npm packs it, and an empty project that it is installed into, without compiler and network. */
import { execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'
import { childEnvironment, scratch } from './index.js'

export const root = fileURLToPath(new URL('../..', import.meta.url))

export interface PackedFile {
  path: string
  size: number
}

export interface Packed {
  tarball: string
  size: number
  files: PackedFile[]
}

export interface Project {
  directory: string
  /** Of the installed package. */
  installed: string
  env: NodeJS.ProcessEnv
}

/**
 * Packs a copy whose prebuild is the addon of this checkout: prebuildify would build it anew, in the folder that other
 * tests load it from.
 */
export function pack(t: Test): Packed {
  const folder = scratch(t)
  const copy = path.join(folder, 'package')
  for (const source of ['package.json', 'README.md', 'LICENSE', ...packedSources()]) {
    fs.cpSync(path.join(root, source), path.join(copy, source), { recursive: true })
  }
  const libc = process.platform === 'linux' ? '.glibc' : ''
  const prebuild = path.join(
    'prebuilds',
    `${process.platform}-${process.arch}`,
    `bhyve-checkpoint${libc}.node`,
  )
  fs.mkdirSync(path.dirname(path.join(copy, prebuild)), { recursive: true })
  fs.copyFileSync(path.join(root, 'build/Release/bhyve_checkpoint.node'), path.join(copy, prebuild))
  return packFolder(copy, folder)
}

function packedSources(): string[] {
  const { files } = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8')) as {
    files: string[]
  }
  return files.filter((file) => !file.startsWith('!') && file !== 'prebuilds')
}

/** None of them has dependencies of its own. */
export function runtimeDependencies(): string[] {
  const manifest = fs.readFileSync(path.join(root, 'package.json'), 'utf8')
  return Object.keys((JSON.parse(manifest) as { dependencies: object }).dependencies)
}

export function packFolder(folder: string, destination: string): Packed {
  const args = ['pack', folder, '--json', '--ignore-scripts', '--pack-destination', destination]
  const output = npm(destination, ownEnvironment(), ...args)
  const [packed] = JSON.parse(output) as { filename: string; size: number; files: PackedFile[] }[]
  if (packed === undefined) throw new Error('npm packed nothing')
  return { tarball: path.join(destination, packed.filename), size: packed.size, files: packed.files }
}

/**
 * What is installed is tested with the addon that came with it, whichever the other tests are to load; and compilers
 * are not to run under the sanitizer that such an addon needs.
 */
export function ownEnvironment(extra: Record<string, string> = {}): NodeJS.ProcessEnv {
  return childEnvironment({ BHYVE_CHECKPOINT_PREBUILD: '', LD_PRELOAD: '', ...extra })
}

/** A project in which nothing is but what was packed, on a PATH with node and sh alone. */
export function install(t: Test, packed: Packed): Project {
  const directory = fs.realpathSync(scratch(t))
  const project = path.join(directory, 'project')
  const tools = path.join(directory, 'bin')
  for (const folder of [project, tools]) fs.mkdirSync(folder)
  fs.symlinkSync(process.execPath, path.join(tools, 'node'))
  fs.symlinkSync('/bin/sh', path.join(tools, 'sh'))
  const env = ownEnvironment({ PATH: tools })
  const dependencies = runtimeDependencies().map(
    (name) => packFolder(path.join(root, 'node_modules', name), directory).tarball,
  )
  fs.writeFileSync(path.join(project, 'package.json'), '{ "private": true, "type": "module" }\n')
  const flags = ['--offline', '--no-audit', '--no-fund', '--cache', path.join(directory, 'cache')]
  npm(project, env, 'install', ...flags, packed.tarball, ...dependencies)
  return { directory: project, installed: path.join(project, 'node_modules/bhyve-checkpoint'), env }
}

export function npm(cwd: string, env: NodeJS.ProcessEnv, ...args: string[]): string {
  return execFileSync(process.execPath, [npmScript(), ...args], { cwd, env, encoding: 'utf8', stdio: 'pipe' })
}

/** npm's own script: what is called `npm` may look for node on a PATH that has none. */
function npmScript(): string {
  const named = process.env.npm_execpath
  if (named?.endsWith('npm-cli.js') === true) return named
  const { stdout } = spawnSync('sh', ['-c', 'command -v npm'], { encoding: 'utf8' })
  return fs.realpathSync(stdout.trim())
}

/** Runs a program of the project, given as text. */
export function runIn(
  project: Project,
  name: string,
  text: string,
  args: readonly string[] = [],
  flags: readonly string[] = [],
): { status: number | null; stdout: string; stderr: string } {
  const file = path.join(project.directory, name)
  fs.writeFileSync(file, text)
  const options = { cwd: project.directory, env: project.env, encoding: 'utf8', timeout: 120_000 } as const
  return spawnSync(process.execPath, [...flags, file, ...args], options)
}
