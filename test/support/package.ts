/** Packs the package with npm and installs it into an empty project, without compiler and network. */
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
  /** The directory of the installed package. */
  installed: string
  env: NodeJS.ProcessEnv
}

/**
 * Packs a copy whose prebuild is the addon of this checkout. Does not use prebuildify: it would rebuild the addon in
 * the directory from which other tests load it.
 */
export function pack(t: Test): Packed {
  const directory = scratch(t)
  const copy = path.join(directory, 'package')
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
  const [packed] = packDirectories([copy], directory)
  return packed!
}

function packedSources(): string[] {
  const { files } = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8')) as {
    files: string[]
  }
  return files.filter((file) => !file.startsWith('!') && file !== 'prebuilds')
}

/** The dependencies of the package, and theirs. */
export function runtimeDependencies(): string[] {
  const found = new Set<string>()
  const add = (directory: string): void => {
    const manifest = fs.readFileSync(path.join(root, directory, 'package.json'), 'utf8')
    const { dependencies = {} } = JSON.parse(manifest) as { dependencies?: object }
    for (const name of Object.keys(dependencies)) {
      if (found.has(name)) continue
      found.add(name)
      add(path.join('node_modules', name))
    }
  }
  add('')
  return [...found]
}

/** Packs each of the directories, with one npm. */
function packDirectories(directories: readonly string[], destination: string): Packed[] {
  const args = ['pack', ...directories, '--json', '--ignore-scripts', '--pack-destination', destination]
  const output = npm(destination, ownEnvironment(), ...args)
  const packed = JSON.parse(output) as { filename: string; size: number; files: PackedFile[] }[]
  if (packed.length !== directories.length) throw new Error(`npm packed ${String(packed.length)} packages`)
  return packed.map(({ filename, size, files }) => ({
    tarball: path.join(destination, filename),
    size,
    files,
  }))
}

/**
 * The environment for tests of the installed package. They use the addon in the package, even if the other tests are
 * run with another one. Compilers must not run under the sanitizer that the other addon may need.
 */
export function ownEnvironment(extra: Record<string, string> = {}): NodeJS.ProcessEnv {
  return childEnvironment({ BHYVE_CHECKPOINT_PREBUILD: '', LD_PRELOAD: '', ...extra })
}

/** A project that contains only the packed package. Its PATH contains only node and sh. */
export function install(t: Test, packed: Packed): Project {
  const directory = fs.realpathSync(scratch(t))
  const project = path.join(directory, 'project')
  const tools = path.join(directory, 'bin')
  for (const created of [project, tools]) fs.mkdirSync(created)
  fs.symlinkSync(process.execPath, path.join(tools, 'node'))
  fs.symlinkSync('/bin/sh', path.join(tools, 'sh'))
  const env = ownEnvironment({ PATH: tools })
  const dependencies = runtimeDependencies().map((name) => path.join(root, 'node_modules', name))
  const tarballs = packDirectories(dependencies, directory).map(({ tarball }) => tarball)
  fs.writeFileSync(path.join(project, 'package.json'), '{ "private": true, "type": "module" }\n')
  const flags = ['--offline', '--no-audit', '--no-fund', '--cache', path.join(directory, 'cache')]
  npm(project, env, 'install', ...flags, packed.tarball, ...tarballs)
  return { directory: project, installed: path.join(project, 'node_modules/bhyve-checkpoint'), env }
}

/** A copy of an installed project, for a test that changes it. */
export function copyOf(t: Test, { directory, env }: Project): Project {
  const copy = path.join(fs.realpathSync(scratch(t)), 'project')
  for (const entry of ['package.json', 'node_modules'])
    fs.cpSync(path.join(directory, entry), path.join(copy, entry), {
      recursive: true,
      verbatimSymlinks: true,
    })
  return { directory: copy, installed: path.join(copy, 'node_modules/bhyve-checkpoint'), env }
}

export function npm(cwd: string, env: NodeJS.ProcessEnv, ...args: string[]): string {
  return execFileSync(process.execPath, [npmScript(), ...args], { cwd, env, encoding: 'utf8', stdio: 'pipe' })
}

/** The path of npm's script. The program `npm` may search for node in a PATH that does not contain it. */
function npmScript(): string {
  const named = process.env.npm_execpath
  if (named?.endsWith('npm-cli.js') === true) return named
  const { stdout } = spawnSync('sh', ['-c', 'command -v npm'], { encoding: 'utf8' })
  return fs.realpathSync(stdout.trim())
}

/** Writes a program into the project and runs it. */
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
