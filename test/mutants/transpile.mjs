/** Compiles a changed file of lib/ without its types. */
import fs from 'node:fs'
import path from 'node:path'
import ts from 'typescript'

/** The path of the compiled `file`, such as lib/fs/directory.ts. */
export function compiledFile(root, file) {
  return path.join(root, file.replace(/^lib/, 'dist').replace(/ts$/, 'js'))
}

export function transpiled(root, file, text) {
  const { config } = ts.readConfigFile(path.join(root, 'tsconfig.json'), ts.sys.readFile)
  const { options } = ts.convertCompilerOptionsFromJson({ ...config.compilerOptions, module: 'ESNext' }, root)
  return ts.transpileModule(text, { compilerOptions: options, fileName: file }).outputText
}

/**
 * Makes the threads and the commands load each file by itself. The build puts all of them into few, in which a change would
 * be missing.
 */
export function unbundle(root) {
  const { bin } = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8'))
  for (const bundled of ['dist/worker/worker.js', ...Object.values(bin)]) {
    const file = bundled.replace(/^dist/, 'lib').replace(/js$/, 'ts')
    const text = fs.readFileSync(path.join(root, file), 'utf8')
    fs.writeFileSync(path.join(root, bundled), transpiled(root, file, text))
  }
}
