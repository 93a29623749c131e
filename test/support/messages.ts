/** Collects every text that the library and the command line can produce, from the syntax trees of their source. */
import fs from 'node:fs'
import path from 'node:path'
import ts from 'typescript'

const root = path.join(import.meta.dirname, '../..')

export interface Message {
  /** The error, problem, blocker or warning code, if it stands beside the text. */
  code: string | undefined
  /** Inserted values are `<name>`, alternatives `{one|other}`. */
  text: string
}

/** A shell script, and what the simulated bhyve prints because bhyve does. */
const notOurs =
  /^lib\/(cli\/commands\/completion|simulator\/(arguments|bhyve|refusal|saved_checkpoint|restored_state|ucl))\.ts$/

/** Messages by file, in the order of the source. */
export function collectMessages(): Map<string, Message[]> {
  const names = fs.readdirSync(path.join(root, 'lib'), { recursive: true, encoding: 'utf8' })
  const files = names.filter((name) => name.endsWith('.ts')).map((name) => `lib/${name}`)
  const collected = files
    .filter((file) => !notOurs.test(file))
    .sort()
    .map((file) => [file, messagesOf(fs.readFileSync(path.join(root, file), 'utf8'))] as const)
  return new Map(collected.filter(([, messages]) => messages.length > 0))
}

function messagesOf(source: string): Message[] {
  const tree = ts.createSourceFile('source.ts', source, ts.ScriptTarget.Latest, true)
  const inlined = new Set<ts.Node>()
  const texts = textsIn(tree).map((node) => ({ node, text: render(node, inlined) }))
  const messages = texts
    .filter(({ node, text }) => !inlined.has(node) && isProse(text))
    .map(({ node, text }) => ({ code: codeOf(node), text }))
  const isFirst = ({ code, text }: Message, index: number): boolean =>
    messages.findIndex((one) => one.code === code && one.text === text) === index
  return messages.filter(isFirst)
}

/** Two words with a space between them, one of them not inserted. */
function isProse(text: string): boolean {
  return /[\p{L}\d'>}),;:.] +[\p{L}'<{(]/u.test(text) && /\p{L}{2}/u.test(text.replace(/<[^>]*>/g, ''))
}

/** The outermost texts: a concatenation or a template counts as one. */
function textsIn(node: ts.Node): ts.Expression[] {
  if (isText(node)) return [node]
  const found: ts.Expression[] = []
  ts.forEachChild(node, (child) => void found.push(...textsIn(child)))
  return found
}

function isText(node: ts.Node): node is ts.Expression {
  if (ts.isStringLiteralLike(node) || ts.isTemplateExpression(node)) return !ts.isLiteralTypeNode(node.parent)
  return isSum(node) && (isText(node.left) || isText(node.right))
}

function isSum(node: ts.Node): node is ts.BinaryExpression {
  return ts.isBinaryExpression(node) && node.operatorToken.kind === ts.SyntaxKind.PlusToken
}

function render(node: ts.Expression, inlined: Set<ts.Node>): string {
  const part = (one: ts.Expression): string => render(one, inlined)
  if (ts.isStringLiteralLike(node)) return node.text
  if (ts.isTemplateExpression(node))
    return (
      node.head.text + node.templateSpans.map((span) => part(span.expression) + span.literal.text).join('')
    )
  if (isSum(node)) return part(node.left) + part(node.right)
  if (ts.isParenthesizedExpression(node)) return part(node.expression)
  if (ts.isConditionalExpression(node)) return `{${part(node.whenTrue)}|${part(node.whenFalse)}}`
  if (ts.isIdentifier(node)) return renderName(node, inlined)
  if (ts.isBinaryExpression(node)) return part(node.left)
  return `<${nameOf(node)}>`
}

/** A local constant that is a text is shown as that text. */
function renderName(name: ts.Identifier, inlined: Set<ts.Node>): string {
  const text = constantOf(name)
  if (text === undefined) return `<${name.text}>`
  for (const part of textsIn(text)) inlined.add(part)
  return render(text, inlined)
}

function constantOf(name: ts.Identifier): ts.Expression | undefined {
  for (let scope: ts.Node = name.parent; !ts.isSourceFile(scope); scope = scope.parent) {
    // A parameter of the same name hides the constant.
    if (
      ts.isFunctionLike(scope) &&
      scope.parameters.some((one) => new RegExp(`\\b${name.text}\\b`).test(one.name.getText()))
    )
      return undefined
    if (!ts.isBlock(scope)) continue
    for (const statement of scope.statements.filter(ts.isVariableStatement))
      for (const { name: declared, initializer } of statement.declarationList.declarations)
        if (declared.getText() === name.text && initializer !== undefined && isChoiceOfTexts(initializer))
          return initializer
  }
  return undefined
}

function isChoiceOfTexts(node: ts.Expression): boolean {
  if (ts.isParenthesizedExpression(node)) return isChoiceOfTexts(node.expression)
  if (ts.isConditionalExpression(node))
    return isChoiceOfTexts(node.whenTrue) || isChoiceOfTexts(node.whenFalse)
  return isText(node)
}

function nameOf(node: ts.Expression): string {
  if (ts.isPropertyAccessExpression(node)) return node.name.text
  if (ts.isElementAccessExpression(node)) return nameOf(node.expression)
  if (ts.isNonNullExpression(node) || ts.isAsExpression(node)) return nameOf(node.expression)
  if (!ts.isCallExpression(node)) return node.getText().replace(/\s+/g, ' ').slice(0, 30)
  const { expression: called, arguments: args } = node
  if (
    ts.isPropertyAccessExpression(called) &&
    /^(join|map|slice|filter|toFixed|replace)$/.test(called.name.text)
  )
    return nameOf(called.expression)
  const [first] = args
  if (ts.isIdentifier(called) && first !== undefined && args.length === 1) return nameOf(first)
  return ts.isPropertyAccessExpression(called) ? called.name.text : called.getText()
}

const isCode = (node: ts.Node | undefined): node is ts.StringLiteral =>
  node !== undefined && ts.isStringLiteral(node) && /^(ERR_[A-Z_]+|[a-z]+(-[a-z]+)*)$/.test(node.text)

/** Of the call or object that the text is part of, or that the constant of this text is given to. */
function codeOf(text: ts.Expression): string | undefined {
  let node: ts.Node = text
  while (ts.isConditionalExpression(node.parent) || ts.isParenthesizedExpression(node.parent))
    node = node.parent
  const { parent } = node
  if (ts.isVariableDeclaration(parent)) return codeBeside(parent)
  return codeIn(parent)
}

function codeIn(node: ts.Node): string | undefined {
  if (ts.isPropertyAssignment(node)) return codeIn(node.parent)
  if (ts.isObjectLiteralExpression(node)) {
    const code = node.properties.find((one) => one.name?.getText() === 'code')
    return code !== undefined && ts.isPropertyAssignment(code) && isCode(code.initializer)
      ? code.initializer.text
      : undefined
  }
  if (!ts.isNewExpression(node) && !ts.isCallExpression(node)) return undefined
  if (
    !/^(CheckpointError|UsageError|blocker|warning|problem|damage|MetadataFault)$/.test(
      node.expression.getText(),
    )
  )
    return undefined
  return node.arguments?.find(isCode)?.text
}

function codeBeside({ name, parent }: ts.VariableDeclaration): string | undefined {
  let found: string | undefined
  const visit = (node: ts.Node): void => {
    const isUse = ts.isIdentifier(node) && node.text === name.getText() && node.parent !== parent
    if (isUse)
      found ??= codeIn(ts.isShorthandPropertyAssignment(node.parent) ? node.parent.parent : node.parent)
    ts.forEachChild(node, visit)
  }
  visit(parent.parent.parent)
  return found
}
