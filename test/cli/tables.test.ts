/** Tables, texts and values of the output. */
import t from 'tap'
import { naturally } from '../../dist/cli/natural_order.js'
import { suggestion } from '../../dist/cli/suggestion.js'
import { tableLines } from '../../dist/cli/table.js'
import { Output } from '../../dist/cli/output.js'
import { formatExactTime, formatMebibytes, formatTime } from '../../dist/cli/values.js'

const columns = [
  { title: 'VM' },
  { title: 'RAM', right: true, optional: 1 },
  { title: 'CREATED', optional: 2 },
  { title: 'NOTES', wraps: true },
]
const rows = [
  ['vm1', '1.0 MiB', '2026-11-29 23:44 +0100', 'suspended, pinned, job=nightly, ticket=4711'],
  ['本番', '-', '-', ''],
]
const linesAt = (width: number | undefined): string[] =>
  tableLines(columns, rows, { width, paint: (_, text) => text }, [undefined, 'Some advice that is long'])

t.test('a table leaves out columns, then wraps its last one, then lists the cells', (t) => {
  t.same(linesAt(undefined), [
    'VM        RAM  CREATED                 NOTES',
    'vm1   1.0 MiB  2026-11-29 23:44 +0100  suspended, pinned, job=nightly, ticket=4711',
    '本番        -  -',
    '  Some advice that is long',
  ])
  t.same(linesAt(70), [
    'VM        RAM  CREATED                 NOTES',
    'vm1   1.0 MiB  2026-11-29 23:44 +0100  suspended, pinned, job=nightly,',
    '                                       ticket=4711',
    '本番        -  -',
    '  Some advice that is long',
  ])
  t.same(linesAt(40), [
    'VM    NOTES',
    'vm1   suspended, pinned, job=nightly,',
    '      ticket=4711',
    '本番',
    '  Some advice that is long',
  ])
  t.same(linesAt(20), [
    'VM       vm1',
    'RAM      1.0 MiB',
    'CREATED  2026-11-29 23:44 +0100',
    'NOTES    suspended,',
    '         pinned,',
    '         job=nightly,',
    '         ticket=4711',
    '',
    'VM       本番',
    'RAM      -',
    'CREATED  -',
    '  Some advice that',
    '  is long',
  ])
  t.end()
})

t.test('names are in natural order', (t) => {
  t.same(['vm10', 'vm2', 'b', 'vm1', 'vm01', 'B2'].sort(naturally), ['b', 'B2', 'vm01', 'vm1', 'vm2', 'vm10'])
  t.end()
})

t.test('a similar word is suggested, another one is not', (t) => {
  const words = ['list', 'ls', 'create', 'destroy', 'destroyall', 'pin', '--timeout', '--json']
  for (const [typed, expected] of [
    ['lsit', 'list'],
    ['lst', 'list'],
    ['craete', 'create'],
    ['destroy-all', 'destroyall'],
    ['--timeuot', '--timeout'],
    ['--jsn', '--json'],
  ] as const)
    t.equal(suggestion(typed, words), `. Did you mean '${expected}'?`)
  for (const typed of ['tidy', 'x', '--colour', 'y'.repeat(100_000)]) t.equal(suggestion(typed, words), '')
  t.end()
})

t.test('times have the offset of the local time', (t) => {
  const before = process.env.TZ
  t.teardown(() => {
    if (before === undefined) delete process.env.TZ
    else process.env.TZ = before
  })
  const date = new Date('2026-07-01T22:30:05Z')
  for (const [zone, minute, second] of [
    ['UTC', '2026-07-01 22:30 +0000', '2026-07-01 22:30:05 +0000'],
    ['Europe/Berlin', '2026-07-02 00:30 +0200', '2026-07-02 00:30:05 +0200'],
    ['America/St_Johns', '2026-07-01 20:00 -0230', '2026-07-01 20:00:05 -0230'],
  ] as const) {
    process.env.TZ = zone
    t.equal(formatTime(date), minute)
    t.equal(formatExactTime(date), second)
  }
  t.equal(formatTime(undefined), '-')
  t.end()
})

t.test("times in the library's messages are local in text and UTC in JSON", (t) => {
  const time = '2026-07-01T22:30:05.123Z'
  const text = `the checkpoint 'x-${time}' was already restored at ${time}, so`
  const print = (json: boolean): string => {
    let printed = ''
    const stream = { write: (line: string) => (printed += line) !== '', on: () => stream } as never
    new Output(json, stream, stream).notice(text)
    return printed
  }
  t.equal(
    print(false),
    `the checkpoint 'x-${time}' was already restored at ${formatExactTime(new Date(time))}, so\n`,
  )
  t.equal(print(true), `${JSON.stringify({ type: 'notice', message: text })}\n`)
  t.end()
})

t.test('progress stays in one unit', (t) => {
  t.equal(formatMebibytes(512 * 1024), '0.5 MiB')
  t.equal(formatMebibytes(64 * 2 ** 30), '65536.0 MiB')
  t.end()
})
