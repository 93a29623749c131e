/** TypeScript's compiler in this process, over programs that use the installed package. */
import path from 'node:path'
import ts from 'typescript'
import { type Project, root } from './package.js'

/** Files that every compilation reads: those of TypeScript's library and Node's declarations. */
const shared = new Map<string, ts.SourceFile | undefined>()

export const formatHost: ts.FormatDiagnosticsHost = {
  getCanonicalFileName: (file) => file,
  getCurrentDirectory: () => root,
  getNewLine: () => '\n',
}

/** A strict compilation without skipLibCheck. */
export class Compilation {
  readonly #options: ts.CompilerOptions
  readonly #installed: string
  readonly #directory: string

  constructor({ directory, installed }: Project, modules: ts.CompilerOptions) {
    this.#directory = directory
    this.#installed = installed
    this.#options = {
      strict: true,
      exactOptionalPropertyTypes: true,
      noEmit: true,
      target: ts.ScriptTarget.ES2022,
      lib: ['lib.es2023.d.ts'],
      types: ['node'],
      typeRoots: [path.join(root, 'node_modules/@types')],
      ...modules,
    }
  }

  /** Those of the file, and of the declarations of the package. The shared declarations are not of interest here. */
  diagnosticsOf(file: string): ts.Diagnostic[] {
    const program = ts.createProgram([file], this.#options, this.#host())
    const own = program
      .getSourceFiles()
      .filter(({ fileName }) => fileName === file || fileName.startsWith(`${this.#installed}/`))
    return [
      ...program.getOptionsDiagnostics(),
      ...program.getGlobalDiagnostics(),
      ...own.flatMap((one) => [
        ...program.getSyntacticDiagnostics(one),
        ...program.getSemanticDiagnostics(one),
      ]),
    ]
  }

  #host(): ts.CompilerHost {
    const host = ts.createCompilerHost(this.#options)
    const read = host.getSourceFile.bind(host)
    host.getCurrentDirectory = () => this.#directory
    host.getSourceFile = (file, ...others) => {
      if (!file.startsWith(path.join(root, 'node_modules'))) return read(file, ...others)
      if (!shared.has(file)) shared.set(file, read(file, ...others))
      return shared.get(file)
    }
    return host
  }
}
