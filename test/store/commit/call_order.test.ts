/**
 * Tests of the order of writes, fsyncs and renames in a system call trace of the library with its threads. Killing a
 * process cannot reveal a missing fsync, so the order itself is checked.
 */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { childEnvironment, scratch } from '../../support/index.js'
import { needs } from '../../support/programs.js'

const script = fileURLToPath(new URL('../../support/replace-and-destroy.mjs', import.meta.url))
const traced = 'openat,close,mkdirat,renameat,renameat2,unlinkat,fsync,flock,dup,fcntl,fcntl64'

/** The system calls on a store's files between two markers, with paths instead of descriptors. */
function trace(t: Test): Map<string, string[]> {
  const directory = fs.realpathSync(scratch(t))
  const log = path.join(directory, 'trace')
  const store = path.join(directory, 'store')
  execFileSync(
    'strace',
    ['-f', '-y', '-qq', '-e', `trace=${traced}`, '-o', log, process.execPath, script, store],
    // The leak sanitizer traces the process when it ends. strace already traces it, and a process has only one tracer.
    { env: childEnvironment({ ASAN_OPTIONS: `${process.env.ASAN_OPTIONS ?? ''}:detect_leaks=0` }) },
  )
  const sections = new Map<string, string[]>()
  let section: string[] = []
  for (const line of fs.readFileSync(log, 'utf8').split('\n')) {
    const marker = /"[^"]*marker-([a-z]+)"/.exec(line)?.[1]
    if (marker !== undefined && !sections.has(marker)) sections.set(marker, (section = []))
    else if (line.includes(store) && !line.includes('= -1 ')) section.push(simplified(line, store))
  }
  return sections
}

/** `fsync staging/ID/checkpoint.ckp`, `rename .staging/ID -> .staging/ID.ready`. */
function simplified(line: string, store: string): string {
  const id = /\.staging\/[0-9a-z]{5,12}/g
  const base = `${store}/vm1`
  const call = /^\d+ +([a-z0-9]+)\(/.exec(line)?.[1] ?? ''
  const paths = [...line.matchAll(/(?:\d+|AT_FDCWD)<([^>]*)>(?:, "([^"]*)")?/g)].map(
    ([, directory, name]) => {
      return (name === undefined ? directory! : `${directory}/${name}`)
        .replace(base, '')
        .replace(/^\//, '')
        .replace(id, '.staging/ID')
    },
  )
  const shown = paths.map((shownPath) =>
    shownPath.replace(/^(\.staging\/)[0-9a-z]{5,12}(\.ready|\.trash|$)/, '$1ID$2'),
  )
  if (call.startsWith('rename')) return `rename ${shown[0] ?? ''} -> ${shown[1] ?? ''}`
  return `${call} ${shown[0] ?? ''}`.trim()
}

function only(section: string[] | undefined): string[] {
  return (section ?? []).filter((call) => /^(rename|unlinkat|fsync|mkdirat|flock)/.test(call))
}

/** Asserts that `calls` contains each of `steps`, in this order. */
function assertOrder(t: Test, calls: string[], steps: string[], what: string): void {
  let position = -1
  for (const step of steps) {
    const next = calls.indexOf(step, position + 1)
    if (next === -1) t.fail(`${what}: no '${step}' after '${calls[position] ?? 'the start'}'`, { calls })
    else position = next
  }
  t.ok(position >= 0, what)
}

const id = '.staging/ID'
const published = (name: string): string[] =>
  ['.kern', '.meta', '.manifest', ''].map(
    (suffix) => `rename ${id}.ready/${name}.ckp${suffix} -> ${name}.ckp${suffix}`,
  )

t.test('create, replace, destroy: calls have the order of docs/storage.md', needs('strace'), async (t) => {
  const sections = trace(t)
  const created = only(sections.get('create'))
  const replaced = only(sections.get('replace'))
  const destroyed = only(sections.get('destroy'))
  const beforeCommit = [
    `rename ${id}/in/ckp -> ${id}/checkpoint.ckp`,
    `unlinkat ${id}/in`,
    `fsync ${id}/checkpoint.ckp.manifest`,
    `fsync ${id}/checkpoint.ckp`,
    `fsync ${id}/checkpoint.ckp.kern`,
    `fsync ${id}/checkpoint.ckp.meta`,
    `fsync ${id}`,
    'flock .staging',
    `rename ${id} -> ${id}.ready`,
    'fsync .staging',
  ]
  const aside = `rename checkpoint.ckp -> ${id}.ready/replaced`
  const afterCommit = [...published('checkpoint'), 'fsync', `fsync ${id}.ready`, `unlinkat ${id}.ready`]
  assertOrder(
    t,
    created,
    ['mkdirat .staging', 'fsync', `mkdirat ${id}`, `mkdirat ${id}/in`, ...beforeCommit, ...afterCommit],
    'create',
  )
  assertOrder(t, replaced, [...beforeCommit, aside, ...afterCommit], 'replace')
  const commit = replaced.indexOf(`rename ${id} -> ${id}.ready`)
  const touchesOld = replaced
    .slice(0, commit)
    .filter((call) => call.includes(' checkpoint.ckp') && !call.startsWith('fsync'))
  t.strictSame(touchesOld, [], 'no call changes the old checkpoint before the commit point')
  t.equal(replaced[commit + 1], 'fsync .staging', 'the fsync directly follows the commit')
  assertOrder(
    t,
    destroyed,
    [
      'flock .staging',
      `mkdirat ${id}.trash`,
      'fsync .staging',
      `rename checkpoint.ckp -> ${id}.trash/checkpoint.ckp`,
      `fsync ${id}.trash`,
      'fsync',
      ...['.kern', '.meta', '.manifest'].map(
        (suffix) => `rename checkpoint.ckp${suffix} -> ${id}.trash/checkpoint.ckp${suffix}`,
      ),
      'fsync',
      `unlinkat ${id}.trash/checkpoint.ckp`,
      `unlinkat ${id}.trash`,
    ],
    'destroy',
  )
})
