// One word per thing. Reports each word that the project does not use for a thing that has a name of its own.
// Usage: node scripts/check-words.mjs [file or directory ...]
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'

/** Each word, and what to write instead. */
const words = [
  [/\bsets?\b/gi, 'checkpoint, checkpoint files'],
  [/\bask(s|ed|ing)?\b/gi, 'request, send, call'],
  [/\bquestions?\b/gi, 'request'],
  [/\bworkshop\b/gi, 'stage'],
  [/\b(bring|brings|brought|bringing) (it |them )?home\b/gi, 'publish'],
  [/\bhome\b/gi, 'the suspended state, the checkpoint directory'],
  [/\b(un)?settl(e|es|ed|ing)\b/gi, 'recover, salvage, finish'],
  [/\boutrun\b/gi, 'finish, recover'],
  [/\bpromis(e|es|ed|ing) (of |to )?(disk )?(space|bytes|checkpoints)\b|\bspace promised\b/gi, 'reservation'],
  [/\bpassOver\b|\b(the|one|a|this|single|second|whole) pass(es)?\b|\bpass(es|ed)? over\b/gi, 'scan'],
  [/\blook(s|ed|ing)?\b/gi, 'poll, inspect, sample'],
  [/\b(im)?patien(ce|t|tly)\b/gi, 'timeout, deadline, poll interval; retry while busy'],
  [/\b(stand|stands|stood|standing) still\b/gi, 'stalled, paused, frozen'],
  [/\bmark(s|ed|ing)?\b/gi, 'restore record, record'],
  [/\bserved\b/gi, 'confirmed'],
  [/\b(take|takes|took|taken|taking) (it |them )?back\b/gi, 'revoke, withdraw'],
  [/\bspeaks? against\b/gi, 'blocker, warning'],
  [/\bwhole\b/gi, 'complete'],
  [/\bplain files?\b/gi, 'regular file'],
  [/\bfolders?\b/gi, 'directory'],
  [/\bforc(e|es|ed|ing)\b.{0,40}\bdisk\b/gi, 'fsync, flush to disk'],
  [/\bplaces?\b/gi, 'target, path, position'],
  [/\bsurroundings\b/gi, 'environment'],
  [/\b(let|lets|letting) (it |them |\w+ )?go\b/gi, 'release, remove'],
  [/\b(tell|tells|told|telling)\b/gi, 'report, return, log'],
  [/\b(say|says|said|saying)\b/gi, 'report, return, log'],
  [/\b(hear|hears|heard|hearing)\b/gi, 'receive, learn'],
  [/\bmend(s|ed|ing)?\b/gi, 'fix'],
  [/\b(throw|throws|threw|thrown|throwing) (it |them )?away\b/gi, 'remove, discard'],
]

/** Text that is removed before the check. `in` and `line`: only in these files and lines. */
const exceptions = [
  {
    match: /\b(new |Readonly|Weak)?Set(<|\()|\bSet\b of |\bstd::set\b|\.set\(|\bset\(|<set>|\bset CMAKE_/g,
    because: 'a class or function of JavaScript, C++ or CMake',
  },
  {
    match:
      /\b(is|are|be|was|not|to|can|cannot|must|has|flag|bits?|options?|variables?|that|have) sets? |\bset -/gi,
    because: 'the verb: a program sets a bit, a variable or an option',
  },
  {
    match: /\bsets? (the|a|an|its|close|all|it|both)\b|\b(is|are|be|was|not|bit) set\b/gi,
    because: 'the same verb',
  },
  { match: /\['set', |\bzfs set\b/g, because: 'the command `zfs set`' },
  { match: /\ballSettled\b/g, because: "JavaScript's name" },
  { match: /\bHOME\b|\/home\/|\/usr\/home\b/g, because: 'the environment variable and the directory' },
  { match: /\bin place\b|\binto place\b/gi, because: 'an idiom that has no other word' },
  {
    match: /\b(the|a|in|of the) whole (call|process|files?|blocks|address space)\b/gi,
    because: 'all of it: not the state of a checkpoint',
  },
  { match: /\blook like\b/gi, because: 'to seem, not to inspect' },
  { match: /\bwhole numbers?\b/gi, because: 'an integer, in a word that every user knows' },
  {
    match: /\bserved[?:]|['"`]served['"`]|\bserved\b(?= ?[,}])|\.served\b|\bserved !==/g,
    because: 'a property of the manifest on disk',
  },
  {
    match: /.*/,
    in: /^docs\/storage\.md$/,
    line: /^\| (reservation|scan) /,
    because: 'the glossary explains the words',
  },
  {
    match: /.*/,
    in: /^CONTRIBUTING\.md$/,
    line: /Before: |do not say/,
    because: 'examples of how not to write',
  },
]

const scope = ['lib', 'native', 'docs', 'examples', '*.md']
const listed = process.argv.slice(2)
const list = spawnSync('git', ['ls-files', '--', ...(listed.length > 0 ? listed : scope)], {
  encoding: 'utf8',
})
const files = list.stdout.split('\n').filter((file) => /\.(ts|cc|h|md|mjs|txt)$/.test(file))
let found = 0
for (const file of files) {
  for (const [index, line] of fs.readFileSync(file, 'utf8').split('\n').entries()) {
    const rest = exceptions.reduce(
      (text, { match, in: where = /./, line: which = /./ }) =>
        where.test(file) && which.test(line) ? text.replace(match, '') : text,
      line,
    )
    for (const [word, instead] of words)
      for (const [text] of rest.matchAll(word)) {
        found++
        console.log(`${file}:${String(index + 1)}: '${text}': write ${instead}`)
      }
  }
}
console.log(`${String(files.length)} files, ${String(found)} words to replace`)
process.exitCode = found === 0 && files.length > 0 ? 0 : 1
