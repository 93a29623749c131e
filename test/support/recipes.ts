/** The recipes of docs/portable.md, and hosts that run them. */
import { execFile } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import type { Test } from 'tap'
import { type CheckpointClient, createClient } from 'bhyve-checkpoint'
import { SimulatedBhyve, type SimulatorOptions } from 'bhyve-checkpoint/simulator'
import { childEnvironment, type Ended, scratch } from './index.js'
import { root } from './package.js'

export interface Recipe {
  title: string
  block: string
}

/** Every shell block of the section "Recipes", with the heading above it. */
export function recipesOf(page: string): Recipe[] {
  const [, section = ''] = /^## Recipes\n([^]*?)(?=^## |$(?![^]))/m.exec(page) ?? []
  return section.split(/^### /m).flatMap((part) => {
    const title = part.slice(0, part.indexOf('\n'))
    return [...part.matchAll(/^```sh\n(.*?)^```$/gms)].map(([, block = '']) => ({ title, block }))
  })
}

/** The blocks under a heading, in their order. */
export function recipe(title: string): string[] {
  const page = fs.readFileSync(path.join(root, 'docs/portable.md'), 'utf8')
  const blocks = recipesOf(page).filter((one) => one.title === title)
  if (blocks.length === 0) throw new Error(`docs/portable.md has no recipe '${title}'`)
  return blocks.map(({ block }) => block)
}

/** A directory with checkpoints, and a `bhyve-checkpoint` that uses them. */
export class RecipeHost {
  readonly directory: string
  readonly client: CheckpointClient
  readonly #runDirectory: string
  readonly #t: Test

  constructor(t: Test) {
    this.#t = t
    this.directory = fs.realpathSync(scratch(t))
    this.#runDirectory = path.join(this.directory, 'run')
    for (const directory of [this.#runDirectory, this.bin]) fs.mkdirSync(directory)
    const directories = { runDirectory: this.#runDirectory, checkpointDirectory: this.checkpointDirectory }
    this.client = createClient(directories)
    const program = path.join(root, 'dist/cli/main.js')
    const options = `--run-directory '${this.#runDirectory}' --checkpoint-directory '${this.checkpointDirectory}'`
    this.install(
      'bhyve-checkpoint',
      `command=$1; shift; exec '${process.execPath}' '${program}' "$command" ${options} "$@"`,
    )
  }

  get bin(): string {
    return path.join(this.directory, 'bin')
  }

  get checkpointDirectory(): string {
    return path.join(this.directory, 'checkpoints')
  }

  /** PATH for this host. */
  get searchPath(): string {
    return `${this.bin}:${process.env.PATH ?? ''}`
  }

  /** Puts a shell script on the PATH of the host. */
  install(name: string, script: string): void {
    fs.writeFileSync(path.join(this.bin, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 })
  }

  async start(options: Omit<SimulatorOptions, 'vm' | 'runDirectory'> = {}): Promise<void> {
    const bhyve = await SimulatedBhyve.start({ ...options, vm: 'vm1', runDirectory: this.#runDirectory })
    this.#t.teardown(() => bhyve.stop())
  }

  /** Runs commands in the directory of the host. */
  run(commands: string, shell = 'bash', env: Record<string, string> = {}): Promise<Ended> {
    const options = {
      cwd: this.directory,
      env: childEnvironment({ PATH: this.searchPath, HOME: this.directory, ...env }),
      timeout: 120_000,
    }
    return new Promise((resolve) => {
      const child = execFile(shell, ['-c', commands], options, (_error, stdout, stderr) => {
        resolve({ code: child.exitCode, signal: child.signalCode, stdout, stderr })
      })
    })
  }

  /** The RAM of a stored checkpoint of vm1. */
  ram(name: string): Buffer {
    return fs.readFileSync(path.join(this.checkpointDirectory, 'vm1', `${name}.ckp`))
  }
}
