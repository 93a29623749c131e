/** Whether a disk of the arguments is one of the recorded paths. */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { coverFinder } from '../../dist/bhyve_arguments/cover.js'
import { scratch } from '../support/index.js'

t.test('cover: resolves a link to a disk that an interrupted rollback has renamed', (t) => {
  const root = fs.realpathSync(scratch(t))
  const disk = path.join(root, 'disks/a.img')
  fs.mkdirSync(path.dirname(disk))
  fs.symlinkSync('disks', path.join(root, 'other'))
  fs.symlinkSync('other/a.img', path.join(root, 'link'))
  fs.symlinkSync(path.join(root, 'link'), path.join(root, 'second'))
  const coverOf = coverFinder([disk])
  for (const exists of [false, true]) {
    if (exists) fs.writeFileSync(disk, '')
    for (const name of ['disks/a.img', 'other/a.img', 'link', 'second'])
      t.strictSame(coverOf(path.join(root, name)), { path: disk, rest: '' }, `${name} ${exists}`)
    t.equal(coverOf(path.join(root, 'disks/b.img')), undefined)
  }
  t.end()
})

t.test('cover: links in a circle are no disk', (t) => {
  const root = scratch(t)
  fs.symlinkSync('two', path.join(root, 'one'))
  fs.symlinkSync('one', path.join(root, 'two'))
  t.equal(coverFinder([path.join(root, 'a.img')])(path.join(root, 'one')), undefined)
  t.end()
})
