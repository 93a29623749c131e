/** Which words of bhyve's arguments are secrets, and that no fault shows them. */
import t from 'tap'
import { parseCommandLine } from '../../dist/bhyve_arguments/command_line.js'
import { maskedArguments, secretsIn } from '../../dist/bhyve_arguments/secrets.js'

const noFile = (): string => ''

t.test('masked arguments: each form of a password is replaced, and nothing else', async (t) => {
  const cases: [string[], string[]][] = [
    [
      ['-s', '29,fbuf,tcp=[::]:5900,password=hunter2,w=800', 'vm1'],
      ['-s', '29,fbuf,tcp=[::]:5900,password=***,w=800', 'vm1'],
    ],
    [['-s29,fbuf,password=a b=c'], ['-s29,fbuf,password=***']],
    [
      ['-AHs', '29,fbuf,password=x'],
      ['-AHs', '29,fbuf,password=***'],
    ],
    [
      ['-o', 'pci.0.29.0.password=a,b=c,d'],
      ['-o', 'pci.0.29.0.password=***'],
    ],
    [
      ['-opci.0.29.0.password=x', 'vm1'],
      ['-opci.0.29.0.password=***', 'vm1'],
    ],
    [
      ['-o', 'a=x', '-o', 'b=%(a)', '-o', 'c=y', '-s', '29,fbuf,password=%(b)'],
      ['-o', 'a=***', '-o', 'b=***', '-o', 'c=y', '-s', '29,fbuf,password=***'],
    ],
    [
      ['-f', 'opt/config,string=a,b'],
      ['-f', 'opt/config,string=***'],
    ],
    [
      ['-f', 'opt/config,file=/c', '-s', '4,virtio-blk,/passwords', '-l', 'com1,/dev/nmdm0A'],
      ['-f', 'opt/config,file=/c', '-s', '4,virtio-blk,/passwords', '-l', 'com1,/dev/nmdm0A'],
    ],
    [
      ['vm1', '-s', '29,fbuf,password=x,w=1'],
      ['vm1', '-s', '29,fbuf,password=***'],
    ],
    [
      ['-s', '29,fbuf,password='],
      ['-s', '29,fbuf,password='],
    ],
  ]
  for (const [args, masked] of cases) {
    t.same(maskedArguments(args), masked)
    t.same(
      secretsIn(args),
      args.flatMap((word, index) => (word === masked[index] ? [] : [index])),
    )
  }
})

t.test('faults: no message of the parser contains a password', async (t) => {
  for (const args of [
    ['-s', '99,fbuf,password=hunter2', 'vm1'],
    ['-s99,fbuf,password=hunter2,w=1', 'vm1'],
    ['-s', '3,fbuf', '-s', '3,fbuf,password=hunter2', 'vm1'],
    ['vm1', '-s29,fbuf,password=hunter2'],
    ['-s', '3,ahci,password=hunter2', 'vm1'],
  ]) {
    const { fault } = parseCommandLine(args, undefined, noFile)
    t.type(fault, 'string')
    t.notMatch(fault, 'hunter2', args.join(' '))
  }
  const { fault } = parseCommandLine(['-s', '99,fbuf,password=hunter2', 'vm1'], undefined, noFile)
  t.equal(fault, '-s 99,fbuf,password=*** has no valid PCI slot')
})
