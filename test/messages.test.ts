/**
 * Every text that the library and the command line can produce stands in test/fixtures/messages.txt. A reviewer reads
 * them in one go, and a change shows in a diff. `UPDATE_TEXTS=1` writes the file: read the difference then.
 */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { collectMessages, type Message } from './support/messages.js'

const kept = path.join(import.meta.dirname, 'fixtures/messages.txt')
const collected = collectMessages()
const errors = [...collected].flatMap(([file, messages]) =>
  messages.filter(({ code }) => code?.startsWith('ERR_') === true).map((message) => ({ file, ...message })),
)

void t.test('messages.txt has every message of the source', (t) => {
  const lines = ({ code, text }: Message): string =>
    `  ${code === undefined ? '' : `${code}: `}${text.replaceAll('\n', '\\n')}`
  const text = [...collected]
    .map(([file, messages]) => [file, ...messages.map(lines)].join('\n'))
    .join('\n\n')
  if (process.env.UPDATE_TEXTS === '1') fs.writeFileSync(kept, `${text}\n`)
  t.equal(`${text}\n`, fs.readFileSync(kept, 'utf8'))
  t.end()
})

void t.test('an error message begins with a capital, a quoted name, an option or "bhyve"', (t) => {
  t.ok(errors.length > 50, `${String(errors.length)} errors`)
  for (const { file, text } of errors) t.match(text, /^(\p{Lu}|['<{]|--|bhyve)/u, `${file}: ${text}`)
  t.end()
})

void t.test('no message ends with a full stop, and none exclaims', (t) => {
  for (const [file, messages] of collected)
    for (const { text } of messages)
      // CBSD's manual has this line.
      if (text !== 'Checkpoint was created!: <path>') t.notMatch(text, /\.$|!/, `${file}: ${text}`)
  t.end()
})
