/** The command line of bhyve, parsed as bhyve does. */
import t from 'tap'
import { type CommandLine, parseCommandLine } from '../../dist/bhyve_arguments/command_line.js'
import { parseCommandLine as parseSimulated } from '../../dist/simulator/arguments.js'
import { machineOf as simulatedMachineOf } from '../../dist/simulator/machine.js'

const MiB = 1024 * 1024
const noFile = (): string => ''

function parse(args: readonly string[], text?: string): CommandLine {
  return parseCommandLine(args, undefined, text === undefined ? noFile : () => text)
}

const machines: [args: string[], cpus: number, memory: number, devices: string[], insertAt: number][] = [
  [['vm'], 1, 256 * MiB, [], 0],
  [['-AHP', 'vm'], 1, 256 * MiB, [], 1],
  [['-AHPm4G', 'vm'], 1, 4096 * MiB, [], 1],
  [['-m', '4G', '-c', '4', 'vm'], 4, 4096 * MiB, [], 4],
  [['-m', '512', '--', 'vm'], 1, 512 * MiB, [], 2],
  [['--', '-rf'], 1, 256 * MiB, [], 0],
  [['-'], 1, 256 * MiB, [], 0],
  [['-o', 'name=vm'], 1, 256 * MiB, [], 2],
  [['-m', '1048576', 'vm'], 1, MiB, [], 2],
  [['-m', '1048575', 'vm'], 1, 1048575 * MiB, [], 2],
  [['-m', '0x10', 'vm'], 1, 16 * MiB, [], 2],
  [['-m', '010', 'vm'], 1, 8 * MiB, [], 2],
  [['-m', '2048k', 'vm'], 1, 2 * MiB, [], 2],
  [['-m', '64M', 'vm'], 1, 64 * MiB, [], 2],
  [['-m', '3gb', 'vm'], 1, 3072 * MiB, [], 2],
  [['-m', '1T', 'vm'], 1, 1024 * 1024 * MiB, [], 2],
  [['-m', '2097152b', 'vm'], 1, 2 * MiB, [], 2],
  [['-m', '1G', '-m', '2G', 'vm'], 1, 2048 * MiB, [], 4],
  [['-m1G', '-o', 'memory.size=3G', 'vm'], 1, 3072 * MiB, [], 3],
  [['-c', '', 'vm'], 1, 256 * MiB, [], 2],
  [['-c', 'cpus=4,sockets=2,cores=2', 'vm'], 4, 256 * MiB, [], 2],
  [['-c', '8,threads=2,cores=2,sockets=2', 'vm'], 8, 256 * MiB, [], 2],
  [['-csockets=2,cores=3', 'vm'], 6, 256 * MiB, [], 1],
  [['-c', '0x4', 'vm'], 4, 256 * MiB, [], 2],
  [['-s', '0,hostbridge', 'vm'], 1, 256 * MiB, ['hostbridge@pci.0.0.0'], 2],
  [['-s0:0,amd_hostbridge', 'vm'], 1, 256 * MiB, ['hostbridge@pci.0.0.0'], 1],
  [['-s', '2:1,ahci-hd,/d', 'vm'], 1, 256 * MiB, ['ahci@pci.0.2.1'], 2],
  [['-s', '2,ahci-cd,/d', 'vm'], 1, 256 * MiB, ['ahci@pci.0.2.0'], 2],
  [['-s', '5:6:7,passthru,1/2/3', 'vm'], 1, 256 * MiB, ['passthru@pci.5.6.7'], 2],
  [['-s', ' 3,lpc', 'vm'], 1, 256 * MiB, ['lpc@pci.0.3.0'], 2],
  [['-s', '+3:01,lpc', 'vm'], 1, 256 * MiB, ['lpc@pci.0.3.1'], 2],
  [['-s', '3:x,lpc', 'vm'], 1, 256 * MiB, ['lpc@pci.0.3.0'], 2],
  [['-s', '3:1:x,lpc', 'vm'], 1, 256 * MiB, ['lpc@pci.0.3.1'], 2],
  [['-s', '3 :1,lpc', 'vm'], 1, 256 * MiB, ['lpc@pci.0.3.0'], 2],
  [['-s', '1:2:3:4,lpc', 'vm'], 1, 256 * MiB, ['lpc@pci.1.2.3'], 2],
  [['-s', '0x3,lpc', 'vm'], 1, 256 * MiB, ['lpc@pci.0.0.0'], 2],
  [['-s', '4294967299,lpc', 'vm'], 1, 256 * MiB, ['lpc@pci.0.3.0'], 2],
  [
    [
      '-s',
      '31,lpc',
      '-s',
      '4,virtio-net,tap0',
      '-s',
      '1:2:0,nvme,/d',
      '-s',
      '4:1,xhci,tablet',
      '-l',
      'com1,stdio',
      'vm',
    ],
    1,
    256 * MiB,
    ['virtio-net@pci.0.4.0', 'xhci@pci.0.4.1', 'lpc@pci.0.31.0', 'nvme@pci.1.2.0'],
    10,
  ],
  [
    [
      '-o',
      'pci.0.10.0.device=fbuf',
      '-s',
      '9,xhci',
      '-o',
      'pci.0.09.0.device=x',
      '-o',
      'pci.0.32.0.device=x',
      'vm',
    ],
    1,
    256 * MiB,
    ['xhci@pci.0.9.0', 'fbuf@pci.0.10.0'],
    8,
  ],
  [
    ['-l', 'bootrom,/x.fd', '-U', 'u', '-G', 'w:1', '-K', 'us', '-f', 'a', '-p', '0:1', '-n', 'id=0', 'vm'],
    1,
    256 * MiB,
    [],
    14,
  ],
  [['-aCDeSuWxYIM', '-p0:1', '-g', '0', 'vm'], 1, 256 * MiB, [], 4],
  [['-U', '-r', 'vm'], 1, 256 * MiB, [], 2],
]

t.test('the machine and the position of -r are those of bhyve', async (t) => {
  for (const [args, cpus, memory, devices, insertAt] of machines) {
    const { fault, machine, insertAt: index } = parse(args)
    t.equal(fault, undefined, args.join(' '))
    t.match(machine, { cpus, memoryBytes: memory, devices }, args.join(' '))
    t.equal(index, insertAt, args.join(' '))
  }
})

/** If the two parsers differ, one of them is wrong. Arguments that the simulator does not implement are skipped. */
t.test('the parser of the simulator returns the same machine', async (t) => {
  for (const [args, cpus, memoryBytes, devices] of machines) {
    const isUnsupported = args.some((word) =>
      /ahci-cd|^-aCDeSuWxYIM|3gb|2097152b|4294967299|pci\.0\.(09|32)/.test(word),
    )
    if (isUnsupported) continue
    const { configuration } = parseSimulated(args, true)
    t.strictSame(simulatedMachineOf(configuration), { cpus, memoryBytes, devices }, args.join(' '))
  }
})

t.test(
  'the VM name is taken from the command line, else the checkpoint, else the configuration',
  async (t) => {
    t.equal(parse(['-o', 'name=config', 'operand']).name, 'operand')
    t.equal(parseCommandLine(['-o', 'name=config'], 'saved', noFile).name, 'saved')
    t.equal(parse(['-o', 'name=config']).name, 'config')
    t.match(parse(['-m', '1G']), { fault: 'the VM name is missing' })
  },
)

t.test('a configuration file is applied at its position', async (t) => {
  const text =
    '# comment\n\ncpus=2\nmemory.size=32M\npci.0.3.0.device=virtio-blk\npci.0.3.0.path=/vms/%(name)/a\nrundir=/r\n'
  const expected = {
    runDirectory: '/r',
    machine: { devices: ['virtio-blk@pci.0.3.0'], disks: [{ path: '/vms/vm/a' }] },
  }
  t.match(parse(['-k', 'f', 'vm'], text), { ...expected, machine: { cpus: 2, memoryBytes: 32 * MiB } })
  t.match(parse(['-k', 'f', '-m', '1G', '-o', 'pci.0.3.0.path=/b', 'vm'], text).machine, {
    memoryBytes: 1024 * MiB,
    disks: [{ path: '/b' }],
  })
  t.match(parse(['-c', '7', '-k', 'f', 'vm'], text).machine, { cpus: 2 }, 'the later value is used')
  t.match(parse(['-k', 'f', 'vm'], 'cpus=1\nnonsense\n'), {
    fault: 'f:2: nonsense is not of the form name=value',
  })
})

const disks: [args: string[], paths: string[]][] = [
  [['-s', '3,virtio-blk,/a,nocache,ro'], ['/a']],
  [['-s', '3,virtio-blk,/a,path=/b'], ['/b']],
  [['-s', '3,virtio-blk,/a=b'], ['/a=b']],
  [['-s', '3,virtio-blk', '-o', 'pci.0.3.0.path=/c'], ['/c']],
  [['-s', '3,virtio-blk,/a', '-o', 'pci.0.3.0.path=/c'], ['/c']],
  [['-s', '3,nvme,/a,maxq=4', '-s', '4,nvme,ram=64'], ['/a']],
  [
    ['-s', '3,ahci-hd,/a', '-s', '4,ahci-cd,/b.iso'],
    ['/a', '/b.iso'],
  ],
  [
    ['-s', '3,ahci,hd:/a,ser=1,cd:/b.iso,hd:,hd:/c'],
    ['/a', '/b.iso', '/c'],
  ],
  [['-s', '3,ahci'], []],
  [['-s', '3,virtio-scsi'], ['/dev/cam/ctl']],
  [['-s', '3,virtio-scsi,/dev/cam/ctl1.2,iid=3'], ['/dev/cam/ctl1.2']],
  [
    ['-s', '3,virtio-scsi,target=/dev/cam/ctl2,target=7:/dev/cam/ctl3'],
    ['/dev/cam/ctl2', '/dev/cam/ctl3'],
  ],
  [['-s', '3,virtio-blk,/%(name)/\\%(name)'], ['/vm/%(name)']],
  [['-s', '3,virtio-blk,/100%,x'], ['/100%']],
  [
    [
      '-s',
      '3,virtio-net,tap0,mac=1',
      '-s',
      '4,passthru,1/0/0',
      '-s',
      '5,fbuf,tcp=0:5900',
      '-s',
      '6,virtio-9p,s=/x',
    ],
    [],
  ],
  [['-l', 'bootrom,/code.fd,/vars.fd', '-l', 'com1,/dev/nmdm0A'], []],
]

t.test('the disks and their paths are found among the devices', async (t) => {
  for (const [args, paths] of disks) {
    const { machine, fault } = parse([...args, 'vm'])
    t.strictSame(machine?.disks.map((disk) => disk.path) ?? fault, paths, args.join(' '))
  }
})

const writable: [args: string[], writable: boolean[]][] = [
  [
    [
      '-s',
      '3,virtio-blk,/a',
      '-s',
      '4,virtio-blk,/b,nocache,ro',
      '-s',
      '5,nvme,/c,ro=true',
      '-s',
      '6,nvme,/d,ro=no',
    ],
    [true, false, false, true],
  ],
  [
    ['-s', '3,ahci-hd,/a', '-s', '4,ahci-cd,/b.iso', '-s', '5,ahci,hd:/c,ser=1,cd:/d,hd:/e,ro'],
    [true, false, true, false, false],
  ],
  [
    ['-s', '3,virtio-scsi', '-s', '4,virtio-scsi,target=/dev/cam/ctl1,ro'],
    [true, true],
  ],
  [
    [
      '-s',
      '3,virtio-blk,/a',
      '-o',
      'pci.0.3.0.ro=on',
      '-s',
      '4,ahci,hd:/b',
      '-o',
      'pci.0.4.0.port.0.type=cd',
    ],
    [false, false],
  ],
]

t.test('a disk is writable unless it is opened for reading only or is a CD', async (t) => {
  for (const [args, expected] of writable) {
    const { machine, fault } = parse([...args, 'vm'])
    t.strictSame(machine?.disks.map((disk) => disk.writable) ?? fault, expected, args.join(' '))
  }
})

const rejected: [args: string[], fault: RegExp][] = [
  [['-Z', 'vm'], /no option -Z/],
  [['-A-', 'vm'], /no option --/],
  [['--help', 'vm'], /no option --/],
  [['-m'], /-m has no value/],
  [['vm', '-m'], /'-m' follows/],
  [['one', 'two'], /'two' follows/],
  [['-h'], /usage/],
  [['-s', 'help', 'vm'], /list/],
  [['-s', 'h', 'vm'], /list/],
  [['-s', '', 'vm'], /list/],
  [['-l', 'help', 'vm'], /list/],
  [['-m', '1Q', 'vm'], /not a valid memory size/],
  [['-m', '-1', 'vm'], /not a valid memory size/],
  [['-m', '08', 'vm'], /not a valid memory size/],
  [['-m', '1GG', 'vm'], /not a valid memory size/],
  [['-c', 'dies=2', 'vm'], /not a valid CPU topology/],
  [['-c', '0', 'vm'], /not a valid number of cpus/],
  [['-c', '2x', 'vm'], /not a valid number of cpus/],
  [['-c', '3,cores=2', 'vm'], /give 6 vCPUs, not 3/],
  [['-c', 'sockets=400,cores=400', 'vm'], /too many/],
  [['-o', 'x', 'vm'], /not of the form name=value/],
  [['-o', 'x=', 'vm'], /not of the form name=value/],
  [['-o', 'a..b=1', 'vm'], /not a valid variable name/],
  [['-o', 'a=1', '-o', 'a.b=1', 'vm'], /both 'a' and 'a\.b'/],
  [['-o', 'a.b=1', '-o', 'a=1', 'vm'], /both 'a' and 'a\.b'/],
  [['-o', 'config.dump=true', 'vm'], /config\.dump .*: omit it/],
  [['-p', '1', 'vm'], /not a valid vCPU pinning/],
  [['-p', '-1:1', 'vm'], /not a valid vCPU pinning/],
  [['-s', '3', 'vm'], /no valid PCI slot/],
  [['-s', '32,lpc', 'vm'], /no valid PCI slot/],
  [['-s', '1:8,lpc', 'vm'], /no valid PCI slot/],
  [['-s', '-1,lpc', 'vm'], /no valid PCI slot/],
  [['-s', '256:1:0,lpc', 'vm'], /no valid PCI slot/],
  [['-s', 'x,lpc', 'vm'], /no valid PCI slot/],
  [['-s', ',lpc', 'vm'], /no valid PCI slot/],
  [['-s', '3,', 'vm'], /no emulation/],
  [['-s', '3,lpc', '-s', '3:0,nvme', 'vm'], /already in use/],
  [['-s', '3,ahci,/d', 'vm'], /must start with hd: or cd:/],
  [['-s', '3,virtio-blk,/d,a.b=1', 'vm'], /cannot be set/],
  [['-o', 'pci.0.3.0.path=/d', 'vm'], /no device/],
  [['-o', 'pci.0.3.0.device=ahci-hd', 'vm'], /legacy name.*'ahci'/],
  [['-r', '/x', 'vm'], /omit -r/],
  [['-AHr/x', 'vm'], /omit -r/],
]

t.test('arguments that bhyve rejects are reported as a fault', async (t) => {
  for (const [args, fault] of rejected) {
    const parsed = parse(args)
    t.match(parsed.fault, fault, args.join(' '))
    t.equal(parsed.machine, undefined)
  }
})
