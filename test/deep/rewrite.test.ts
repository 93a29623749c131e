/** Arguments for another VM on copies of the disks: rewritten as text, then verified. */
import fs from 'node:fs'
import path from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { parseCommandLine } from '../../dist/bhyve_arguments/command_line.js'
import { forkArguments, type ForkedArguments } from '../../dist/bhyve_arguments/fork.js'
import { readArguments } from '../../dist/bhyve_arguments/report.js'
import { rewriteArguments } from '../../dist/bhyve_arguments/rewrite.js'
import { holds, scratch } from '../support/index.js'

/** `copies`: recorded paths with the paths of their copies. */
function forked(args: readonly string[], copies: Record<string, string>, as = 'vm2'): ForkedArguments {
  const { disks } = readArguments(args, 'vm1', '/nonexistent', { recorded: Object.keys(copies) })
  return forkArguments(args, { vm: 'vm1', as, disks, copies: Object.entries(copies) })
}

const file = { '/vms/vm1.img': '/vms/vm1.img.vm2' }
const dataset = { '/tank/vm1': '/tank/vm1-vm2' }

const rewritten: [args: string[], copies: Record<string, string>, result: string[]][] = [
  [['-s', '3,virtio-blk,/vms/vm1.img', 'vm1'], file, ['-s', '3,virtio-blk,/vms/vm1.img.vm2', 'vm2']],
  [['-AHs3,virtio-blk,/vms/vm1.img,ro', 'vm2'], file, ['-AHs3,virtio-blk,/vms/vm1.img.vm2,ro', 'vm2']],
  [['-s3,virtio-blk,/vms/vm1.img'], file, ['-s3,virtio-blk,/vms/vm1.img.vm2', 'vm2']],
  [
    ['-o', 'pci.0.3.0.device=nvme', '-o', 'pci.0.3.0.path=/vms/vm1.img', '--', 'vm1'],
    file,
    ['-o', 'pci.0.3.0.device=nvme', '-o', 'pci.0.3.0.path=/vms/vm1.img.vm2', '--', 'vm2'],
  ],
  [
    ['-s', '3,ahci,hd:/tank/vm1/a,cd:/iso,hd:/tank/vm1/b,ser=1', 'vm1'],
    dataset,
    ['-s', '3,ahci,hd:/tank/vm1-vm2/a,cd:/iso,hd:/tank/vm1-vm2/b,ser=1', 'vm2'],
  ],
  [
    [
      '-l',
      'bootrom,/u.fd,/tank/vm1/vars',
      '-s',
      '5,virtio-9p,s=/tank/vm1/share',
      '-s',
      '3,nvme,/tank/vm1//d',
      'vm1',
    ],
    dataset,
    [
      '-l',
      'bootrom,/u.fd,/tank/vm1-vm2/vars',
      '-s',
      '5,virtio-9p,s=/tank/vm1-vm2/share',
      '-s',
      '3,nvme,/tank/vm1-vm2/d',
      'vm2',
    ],
  ],
  // Similar paths are other files.
  [
    [
      '-s',
      '3,virtio-blk,/tank/vm10/d,ro',
      '-s',
      '4,nvme,/data/tank/vm1/d,ro',
      '-s',
      '5,nvme,/tank/vm1.old,ro',
      'vm1',
    ],
    dataset,
    [
      '-s',
      '3,virtio-blk,/tank/vm10/d,ro',
      '-s',
      '4,nvme,/data/tank/vm1/d,ro',
      '-s',
      '5,nvme,/tank/vm1.old,ro',
      'vm2',
    ],
  ],
  [
    ['-s', '3,nvme,/tank/vm1/d', 'vm1'],
    { '/tank/vm1': '/tank/vm1/forks/vm2' },
    ['-s', '3,nvme,/tank/vm1/forks/vm2/d', 'vm2'],
  ],
]

t.test('fork: paths of disks and the VM name are replaced', async (t) => {
  for (const [args, copies, result] of rewritten) {
    const { args: words, fault, name, insertAt } = forked(args, copies)
    t.equal(fault, undefined, args.join(' '))
    t.strictSame(words, result, args.join(' '))
    t.equal(name, 'vm2')
    t.equal(insertAt, parseCommandLine(words, undefined, () => '').insertAt)
  }
})

t.test('fork: a name with a leading hyphen is not an option', async (t) => {
  const { args, fault, name } = forked(['-s', '3,nvme,/vms/vm1.img', 'vm1'], file, '-r')
  t.equal(fault, undefined)
  t.equal(name, '-r')
  t.strictSame(args, ['-s', '3,nvme,/vms/vm1.img.vm2', '--', '-r'])
})

t.test('fork: links and relative paths are resolved as bhyve does', async (t) => {
  const directory = scratch(t)
  const image = path.join(directory, 'real/d.img')
  fs.mkdirSync(path.dirname(image))
  fs.writeFileSync(image, '')
  const link = path.join(directory, 'link')
  fs.symlinkSync(path.dirname(image), link)
  const byLink = forked(['-s', `3,nvme,${link}/d.img`, 'vm1'], { [image]: '/copy' })
  t.match(byLink, { args: ['-s', '3,nvme,/copy', 'vm2'], fault: undefined })
  const recordedByLink = forked(['-s', `3,nvme,${image}`, 'vm1'], { [link]: '/copies' })
  t.match(recordedByLink, { args: ['-s', '3,nvme,/copies/d.img', 'vm2'], fault: undefined })
  const relative = path.relative(process.cwd(), image)
  const byRelative = forked(['-s', `3,nvme,${relative}`, 'vm1'], { [image]: '/copy' })
  t.match(byRelative, { args: ['-s', '3,nvme,/copy', 'vm2'], fault: undefined })
  // Below the recorded directory by its name only.
  const outside = path.join(directory, 'outside.img')
  fs.writeFileSync(outside, '')
  fs.symlinkSync(outside, path.join(directory, 'real/e.img'))
  const { disks } = readArguments(['-s', `3,nvme,${link}/e.img`, 'vm1'], 'vm1', '/x', {
    recorded: [path.dirname(image)],
  })
  t.equal(disks[0]?.cover, undefined, 'not a disk of the snapshot')
})

t.test('fork: a copy that is a disk of the original is refused', async (t) => {
  const directory = scratch(t)
  const [a, b, link] = ['a', 'b', 'link'].map((name) => path.join(directory, name)) as [
    string,
    string,
    string,
  ]
  for (const image of [a, b]) fs.writeFileSync(image, '')
  fs.symlinkSync(b, link)
  const args = ['-s', `3,nvme,${a}`, '-s', `4,nvme,${b}`, 'vm1']
  t.match(forked(args, { [a]: b, [b]: `${b}.vm2` }).fault, /is itself a disk of VM 'vm1'/)
  t.match(forked(args, { [a]: link, [b]: `${b}.vm2` }).fault, /'.*link' is itself a disk of VM 'vm1'/)
  t.match(forked(args, { [a]: a, [b]: `${b}.vm2` }).fault, /is on a disk of VM 'vm1'|is itself a disk/)
})

t.test('fork: a disk that is missing is covered by its path', async (t) => {
  const directory = scratch(t)
  const { disks } = readArguments(['-s', `3,nvme,${directory}/gone/d`, 'vm1'], 'vm1', '/x', {
    recorded: [`${directory}/gone`],
  })
  t.match(disks, [{ cover: { path: `${directory}/gone`, rest: '/d' } }])
})

t.test('fork: arguments whose paths cannot be replaced are refused', async (t) => {
  const configuration = path.join(scratch(t), 'conf')
  const disk = 'pci.0.3.0.device=nvme\npci.0.3.0.path='
  const ofConfiguration = (text: string) => {
    fs.writeFileSync(configuration, text)
    return ['-k', configuration, 'vm1']
  }
  const refused: [what: string, args: string[], copies: Record<string, string>, reason: RegExp][] = [
    [
      'a disk in a -k file',
      ofConfiguration(`${disk}/vms/vm1.img`),
      file,
      /'\/vms\/vm1\.img' .* could not be replaced/,
    ],
    ['a variable', ['-o', 'd=/vms', '-s', '3,nvme,%(d)/vm1.img', 'vm1'], file, /could not be replaced/],
    ['the name in a path', ['-s', '3,nvme,/vms/%(name).img', 'vm1'], file, /could not be replaced/],
    ['another VM', ['-s', '3,nvme,/vms/vm1.img', 'vm3'], file, /are for VM 'vm3'/],
    ['invalid arguments', ['-Z', 'vm1'], file, /no option -Z/],
    [
      'a comma in the copy',
      ['-s', '3,nvme,/vms/vm1.img', 'vm1'],
      { '/vms/vm1.img': '/a,b' },
      /could not be replaced/,
    ],
    [
      'a reference in the copy',
      ['-s', '3,nvme,/vms/vm1.img', 'vm1'],
      { '/vms/vm1.img': '/a%(x)' },
      /could not be replaced/,
    ],
    [
      'a slot like a path',
      ['-s', '3,nvme,/x=/vms/vm1.img', '-s', '4,nvme,/vms/vm1.img', 'vm1'],
      file,
      /could not be replaced/,
    ],
  ]
  for (const [what, args, copies, reason] of refused) t.match(forked(args, copies).fault, reason, what)
  // Written last, so that the file has this text.
  const vars = ofConfiguration('lpc.bootvars=/tank/vm1/vars\n')
  t.match(forked(vars, dataset).fault, /'\/tank\/vm1\/vars' in the arguments is on a disk of VM 'vm1'/)
})

const component = fc.stringMatching(/^[a-z0-9._%()=:,-]{1,6}$/).filter((name) => !/^\.{1,2}$/.test(name))
const anyPath = fc
  .array(component, { minLength: 1, maxLength: 3 })
  .map((parts) => `/nonexistent/${parts.join('/')}`)
const simple = fc.stringMatching(/^[a-z]{1,4}$/)
const simplePath = fc
  .array(simple, { minLength: 1, maxLength: 3 })
  .map((parts) => `/nonexistent/${parts.join('/')}`)

function argumentsWith(disks: readonly string[]): string[] {
  return [...disks.flatMap((disk, index) => ['-s', `${index + 1},virtio-blk,${disk},nocache`]), 'vm1']
}

t.test('fork: with any paths, the result names exactly the copies or is refused', async (t) => {
  const property = fc.property(
    fc.array(anyPath, { minLength: 1, maxLength: 4 }),
    fc.array(fc.tuple(anyPath, anyPath), { minLength: 1, maxLength: 3 }),
    component,
    (others, copies, as) => {
      const disks = [...others, ...copies.map(([from]) => from)]
      const args = argumentsWith(disks)
      const map = Object.fromEntries(copies)
      const report = readArguments(args, 'vm1', '/nonexistent', { recorded: Object.keys(map) })
      const { args: words, fault } = forked(args, map, as)
      if (fault !== undefined) return
      const after = parseCommandLine(words, undefined, () => '')
      const opened = after.machine?.disks.map((disk) => disk.path) ?? []
      const expected = report.disks.map(({ path, cover }) =>
        cover === undefined ? path : (map[cover.path] ?? '') + cover.rest,
      )
      const originals = report.disks.filter(({ cover }) => cover !== undefined).map((disk) => disk.path)
      if (opened.some((opening) => originals.includes(opening)))
        throw new Error('an original would be opened')
      if (after.name !== as || JSON.stringify(opened) !== JSON.stringify(expected))
        throw new Error(`${words.join(' ')} instead of ${expected.join(' ')}`)
    },
  )
  await holds(t, 'no original is opened', property, 2_000)
})

t.test('fork: simple paths are never refused, and nothing else is changed', async (t) => {
  const property = fc.property(
    fc.uniqueArray(simplePath, { minLength: 1, maxLength: 4 }),
    fc.integer({ min: 1, max: 4 }),
    (disks, count) => {
      const map = new Map(disks.slice(0, count).map((disk) => [disk, `${disk}.vm2`]))
      const { args, fault } = forked(argumentsWith(disks), Object.fromEntries(map))
      if (fault !== undefined) throw new Error(fault)
      const longest = (disk: string): string | undefined =>
        [...map.keys()]
          .filter((from) => disk === from || disk.startsWith(`${from}/`))
          .sort((one, other) => other.length - one.length)[0]
      const expected = disks.map((disk) => {
        const from = longest(disk)
        return from === undefined ? disk : (map.get(from) ?? '') + disk.slice(from.length)
      })
      t.strictSame(args, [...argumentsWith(expected).slice(0, -1), 'vm2'])
    },
  )
  await holds(t, 'the disks are replaced', property, 300)
})

t.test('fork: rewriting without paths changes only the name', async (t) => {
  const property = fc.property(fc.array(fc.string()), simple, (words, as) => {
    const args = [...words.map((word) => `-s${word}x`), 'vm1']
    const result = rewriteArguments(args, { paths: new Map(), as })
    t.strictSame(result, [...args.slice(0, -1), as])
  })
  await holds(t, 'only the name', property, 300)
})

t.test('fork: what both VMs would use is listed', async (t) => {
  const args = [
    ...['-s', '0,hostbridge', '-s', '2,virtio-net,tap0,mac=58:9c:fc:00:00:01', '-s', '3,e1000,vmnet3'],
    ...['-s', '4,virtio-blk,/vms/vm1.img', '-s', '5,virtio-9p,share=/srv,ro', '-s', '6,passthru,2/0/0'],
    ...[
      '-s',
      '7,fbuf,tcp=127.0.0.1:5900,w=800',
      '-s',
      '8,virtio-console,port1=/tmp/console',
      '-s',
      '9,uart,/dev/nmdm7A',
    ],
    ...['-s', '10,hda,play=/dev/dsp0', '-s', '11,virtio-net,slirp,hostfwd=tcp:22-:22', '-s', '31,lpc'],
    ...[
      '-l',
      'com1,/dev/nmdm0A',
      '-l',
      'com2,stdio',
      '-l',
      'bootrom,/u.fd,/v.fd',
      '-l',
      'tpm,passthru,/dev/tpm0',
    ],
    ...['-G', 'w:1234', '-o', 'pci.0.12.0.device=virtio-net', '-o', 'pci.0.12.0.backend=tap9', 'vm1'],
  ]
  t.strictSame(forked(args, file).resources, [
    'tap0',
    'vmnet3',
    'share=/srv',
    '2/0/0',
    'tcp=127.0.0.1:5900',
    'port1=/tmp/console',
    '/dev/nmdm7A',
    'play=/dev/dsp0',
    'hostfwd=tcp:22-:22',
    '/dev/nmdm0A',
    '/v.fd',
    '/dev/tpm0',
    '-G w:1234',
    'pci.0.12.0.backend=tap9',
  ])
  t.strictSame(forked(['-s', '31,lpc', '-l', 'com1,stdio', 'vm1'], {}).resources, [])
})
