/**
 * Makes the mutants: Stryker's instrumenter puts all of them into the code, each behind a switch. Before that, each
 * statement is put into a block of its own, because Stryker empties blocks. The most important mutants here leave out
 * one call.
 */
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import ts from 'typescript'
import { compiledFile, transpiled } from './transpile.mjs'

/** Not used: most of these mutants only change messages, or do not compile. */
const excludedMutations = [
  'StringLiteral',
  'Regex',
  'ObjectLiteral',
  'ArrayDeclaration',
  'OptionalChaining',
  'ArrowFunction',
]
const quiet = { debug() {}, info() {}, isDebugEnabled: () => false }
/**
 * Code in front of each file that records which mutants a test reaches. It writes a mutant when it is reached first,
 * and not at the end, because many of these processes are killed.
 */
const noting = `import { appendFileSync as append_9fa48 } from 'node:fs'
if (globalThis.process.env.MUTANTS_REACHED !== undefined && globalThis.__stryker__ === undefined) {
  const set = (target, id, count) => {
    if (!(id in target)) append_9fa48(globalThis.process.env.MUTANTS_REACHED, id + '\\n')
    target[id] = count
    return true
  }
  globalThis.__stryker__ = { mutantCoverage: { static: new Proxy({}, { set }), perTest: {} } }
}
`
/** Tracing only reports decisions. */
const isTrace = /^(await )?(trace\w*|channel\w*)\(/

/** Writes the instrumented code of `files` into `root`/dist, and returns the mutants. */
export async function instrument(root, files) {
  const { Instrumenter } = await loadInstrumenter()
  const sources = files.map((name) => ({
    name,
    mutate: true,
    content: inBlocks(fs.readFileSync(path.join(root, name), 'utf8')),
  }))
  const instrumenter = new Instrumenter(quiet)
  const made = await instrumenter.instrument(sources, {
    excludedMutations,
    ignorers: [],
    plugins: null,
    noHeader: false,
  })
  for (const { name, content } of made.files) {
    fs.writeFileSync(compiledFile(root, name), noting + transpiled(root, name, content))
  }
  const contents = new Map(sources.map(({ name, content }) => [name, content.split('\n')]))
  const wanted = made.mutants.filter(({ status }) => status !== 'Ignored')
  return withKeys(wanted.map((mutant) => described(mutant, contents.get(mutant.fileName))))
}

async function loadInstrumenter() {
  try {
    return await import('@stryker-mutator/instrumenter')
  } catch (cause) {
    throw new Error(
      'The instrumenter is missing. Run npm install --no-save @stryker-mutator/instrumenter@9',
      { cause },
    )
  }
}

/** Puts statements into blocks of their own. The line numbers do not change. */
function inBlocks(text) {
  const source = ts.createSourceFile('x.ts', text, ts.ScriptTarget.Latest, true)
  const inserts = []
  const visit = (node) => {
    if (isWorthABlock(node, source)) inserts.push([node.getStart(source), '{'], [node.getEnd(), '}'])
    ts.forEachChild(node, visit)
  }
  visit(source)
  let result = text
  for (const [at, brace] of inserts.sort(([one], [other]) => other - one))
    result = result.slice(0, at) + brace + result.slice(at)
  return result
}

function isWorthABlock(node, source) {
  if (!ts.isExpressionStatement(node) || ts.isStringLiteral(node.expression)) return false
  const { parent } = node
  const isAlone = ts.isBlock(parent) && parent.statements.length === 1
  return !isAlone && !isTrace.test(node.getText(source))
}

function described({ id, fileName, location, mutatorName, replacement }, lines) {
  const { start, end } = location
  const text =
    start.line === end.line
      ? lines[start.line].slice(start.column, end.column)
      : [
          lines[start.line].slice(start.column),
          ...lines.slice(start.line + 1, end.line),
          lines[end.line].slice(0, end.column),
        ].join('\n')
  return {
    id,
    file: fileName,
    line: start.line + 1,
    mutator: mutatorName,
    from: text.replace(/\s+/g, ' '),
    to: (replacement ?? '').replace(/\s+/g, ' '),
    where: lines[start.line].trim(),
  }
}

/** Adds keys that do not change when lines are added elsewhere. */
function withKeys(mutants) {
  const seen = new Map()
  return mutants.map(({ where, ...mutant }) => {
    const what = [mutant.file, where, mutant.from, mutant.to].join('\n')
    const count = (seen.get(what) ?? 0) + 1
    seen.set(what, count)
    return { ...mutant, key: createHash('sha256').update(`${what}\n${count}`).digest('hex').slice(0, 10) }
  })
}
