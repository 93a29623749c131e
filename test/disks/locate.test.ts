/** Which dataset a disk is in. */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { locateDisks } from '../../dist/disks/zfs/inspection.js'
import { scratch } from '../support/index.js'

void t.test('a mountpoint that cannot be accessed does not hide the other datasets', async (t) => {
  const directory = fs.realpathSync(scratch(t))
  const image = path.join(directory, 'disk.img')
  const loop = path.join(directory, 'loop')
  fs.writeFileSync(image, '')
  fs.symlinkSync('loop', loop)
  const mounts = [
    { dataset: 'pool/other', mountpoint: loop },
    { dataset: 'pool/vm1', mountpoint: directory },
  ]
  t.same(locateDisks([image], mounts), [{ path: image, dataset: 'pool/vm1', file: 'disk.img' }])
})
