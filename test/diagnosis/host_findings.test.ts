/** What `diagnose` reports about the host, with the facts of hosts that this machine is not. */
import t, { type Test } from 'tap'
import type { ClientOptions, Finding } from 'bhyve-checkpoint'
import type { HostFacts } from '../../dist/diagnosis/host_facts.js'
import { hostFactsOf, withSharedReads } from '../../dist/diagnosis/host_facts.js'
import { parseListenQueues } from '../../dist/diagnosis/listen_queues.js'
import { mountOf, parseMounts } from '../../dist/diagnosis/mounts.js'
import { PeerMemory } from '../../dist/bhyve/peer_memory.js'
import { createClientIn } from '../../dist/client/client.js'
import { hostEnvironment } from '../../dist/client/environment.js'
import { scratch } from '../support/index.js'

/** A FreeBSD host on which everything is as it should be. */
const freebsd: HostFacts = {
  usage: (program, option) =>
    Promise.resolve(
      program === '/usr/sbin/bhyve' && option === '-h'
        ? 'Usage: bhyve [-AaCDeHhPSuWwxY]\n       -p: pin\n       -r: path to checkpoint file\n'
        : undefined,
    ),
  sysctl: (name) =>
    Promise.resolve(
      {
        'kern.conftxt': 'ident\tSNAP\noptions\tBHYVE_SNAPSHOT\noptions\tINET\n',
        'hw.vmm': 'hw.vmm.ipinum: 2',
      }[name],
    ),
  mounts: () => Promise.resolve([{ directory: '/', type: 'ufs', options: ['local', 'soft-updates'] }]),
  compression: () => Promise.resolve('on\n'),
  waitingConnections: () => Promise.resolve(new Map()),
  commandLine: () => Promise.resolve(undefined),
}

function diagnosed(
  t: Test,
  facts: Partial<HostFacts> = {},
  release = '15.1-RELEASE',
  options: ClientOptions = {},
): Promise<readonly Finding[]> {
  const environment = {
    ...hostEnvironment,
    system: { platform: 'freebsd' as const, release },
    vmmDirectory: `${scratch(t)}/vmm`,
    peers: new PeerMemory(),
    facts: { ...freebsd, ...facts },
  }
  const root = scratch(t)
  return createClientIn(environment, { runDirectory: root, checkpointDirectory: root, ...options }).diagnose()
}

function codes(findings: readonly Finding[]): string[] {
  return findings.map(({ level, code }) => `${level} ${code}`)
}

t.test('diagnose: a FreeBSD host with snapshots has no problem', async (t) => {
  const findings = await diagnosed(t)
  t.strictSame(codes(findings), [
    'ok addon-loaded',
    'ok host-supported',
    'ok dialect-known',
    'ok bhyve-with-snapshots',
    'ok kernel-with-snapshots',
    'ok vmm-loaded',
    'ok run-directory-usable',
    'ok checkpoint-directory-usable',
    'ok file-system-suitable',
  ])
  t.match(findings.at(-1)?.message, /ufs with soft updates/)
  t.notOk(findings.some(({ advice }) => advice !== undefined))
})

t.test('diagnose: reports bhyve and a kernel that were built without BHYVE_SNAPSHOT', async (t) => {
  const without = await diagnosed(t, {
    usage: () => Promise.resolve('Usage: bhyve\n       -p: pin\n       -S: guest memory cannot be swapped\n'),
    sysctl: (name) => Promise.resolve(name === 'kern.conftxt' ? 'options\tBHYVE_SNAPSHOTS_NOT\n' : undefined),
  })
  t.match(codes(without).slice(3, 6), [
    'problem bhyve-without-snapshots',
    'problem kernel-without-snapshots',
    'problem vmm-not-loaded',
  ])
  for (const { level, advice } of without) t.equal(advice === undefined, level === 'ok')
})

t.test('diagnose: reports what it cannot find out', async (t) => {
  const unknown = await diagnosed(
    t,
    {
      usage: () => Promise.resolve(undefined),
      sysctl: () => Promise.resolve(''),
      mounts: () => Promise.resolve([]),
    },
    '14.0-CURRENT',
  )
  t.match(codes(unknown).slice(2, 5), [
    'warning dialect-unknown',
    'warning bhyve-unknown',
    'warning kernel-unknown',
  ])
  t.ok(codes(unknown).includes('warning file-system-unknown'))
})

t.test('diagnose: reports the dialect of each release', async (t) => {
  for (const [release, dialect] of [
    ['13.0-RELEASE', 'struct'],
    ['13.2-RELEASE-p3', 'path'],
    ['14.2-RELEASE', 'descriptor'],
    ['16.0-CURRENT', 'descriptor'],
  ] as const) {
    const findings = await diagnosed(t, {}, release)
    t.match(findings.find(({ code }) => code === 'dialect-known')?.message, `'${dialect}'`, release)
  }
})

t.test('diagnose: reports file systems that lose or share checkpoints', async (t) => {
  const on = async (
    type: string,
    options: string[] = [],
    sysctl: HostFacts['sysctl'] = (name) => freebsd.sysctl(name),
  ): Promise<string[]> => {
    const mounts = [
      { directory: '/', type: 'ufs', options: [] },
      { directory: scratch(t), type: 'ext4', options: [] },
      { directory: '/', type, options },
    ]
    return codes(await diagnosed(t, { mounts: () => Promise.resolve(mounts), sysctl }))
  }
  t.ok((await on('tmpfs')).includes('warning file-system-volatile'))
  t.ok((await on('nfs')).includes('warning file-system-remote'))
  t.ok((await on('zfs')).includes('ok file-system-suitable'))
  const cloningOff = await on('zfs', [], (name) =>
    Promise.resolve(name === 'vfs.zfs.bclone_enabled' ? '0\n' : undefined),
  )
  t.ok(cloningOff.includes('warning block-cloning-off'))
})

t.test('diagnose: reports a dataset without compression', async (t) => {
  const on = async (type: string, compression: string | undefined): Promise<string[]> => {
    const mounts = [{ directory: '/', type, options: [] }]
    const facts = { mounts: () => Promise.resolve(mounts), compression: () => Promise.resolve(compression) }
    return codes(await diagnosed(t, facts))
  }
  t.ok((await on('zfs', 'off\n')).includes('warning compression-off'))
  for (const value of ['lz4\n', undefined])
    t.notOk((await on('zfs', value)).includes('warning compression-off'))
  t.notOk((await on('ufs', 'off\n')).includes('warning compression-off'))
})

t.test('mounts: are those of mount(8) and of /proc/self/mounts, and the innermost counts', async (t) => {
  const listed = parseMounts(
    [
      '/dev/ada0p2 on / (ufs, local, soft-updates, journaled soft-updates)',
      'zroot/a b on /a b (zfs, local, nfsv4acls)',
      'tmpfs on /tmp (tmpfs, local)',
      'a line that is no mount',
    ].join('\n'),
  )
  t.match(listed, [{ type: 'ufs' }, { directory: '/a b', type: 'zfs' }, { directory: '/tmp' }])
  const linux = parseMounts('/dev/sda1 / ext4 rw,relatime 0 0\nx /a\\040b/c XFS rw 0 0\n')
  t.strictSame(linux[1], { directory: '/a b/c', type: 'xfs', options: ['rw'] })
  t.equal(mountOf('/a b/c/vm1', linux)?.type, 'xfs')
  t.equal(mountOf('/a b/cc', linux)?.type, 'ext4')
  t.strictSame(parseMounts(undefined), [])
  t.equal(mountOf('/x', []), undefined)
})

t.test('host facts: a program that is missing, fails or hangs ends the wait', async (t) => {
  const facts = hostFactsOf('linux')
  t.equal(await facts.usage('/nonexistent/bhyve', '-h'), undefined)
  t.match(
    await facts.usage('/bin/ls', '--no-such-option'),
    /no-such-option/,
    'a usage text on standard error',
  )
  t.equal(await facts.sysctl('kern.conftxt'), undefined)
  t.ok((await facts.mounts()).some(({ directory }) => directory === '/'))
  t.strictSame((await facts.commandLine(process.pid))?.[0]?.endsWith('node'), true)
  t.equal(await facts.commandLine(2 ** 22), undefined)
  t.equal(await hostFactsOf('freebsd').sysctl('kern.no.such.name'), undefined)
  t.equal(await hostFactsOf('freebsd').commandLine(process.pid), undefined)
})

t.test('the sockets for which connections wait are found in the output of netstat', async (t) => {
  const text = [
    'Current listen queue sizes (qlen/incqlen/maxqlen)',
    'Proto Listen                           Local Address',
    'unix  0/0/10                           /var/run/bhyve/idle',
    'unix  3/0/10                           /var/run/bhyve//vm1',
    'unix  10/0/10                          /var/run/bhyve/a b',
    'unix  2/0/5',
    '',
  ].join('\n')
  t.strictSame(
    [...parseListenQueues(text)],
    [
      ['/var/run/bhyve/vm1', 3],
      ['/var/run/bhyve/a b', 10],
    ],
  )
  t.strictSame([...parseListenQueues(undefined)], [])
  t.strictSame([...(await hostFactsOf('linux').waitingConnections())], [])
})

t.test('host facts: calls at the same time share one process', async (t) => {
  const started: string[] = []
  const facts = withSharedReads({
    ...freebsd,
    sysctl: (name) => {
      started.push(name)
      return freebsd.sysctl(name)
    },
    waitingConnections: () => {
      started.push('netstat')
      return Promise.resolve(new Map([['/a', 1]]))
    },
  })
  const read = async (): Promise<unknown[]> =>
    Promise.all([facts.sysctl('hw.vmm'), facts.waitingConnections(), facts.sysctl('kern.conftxt')])
  const [one, other] = await Promise.all([read(), read()])
  t.strictSame(one, other)
  t.strictSame(started, ['hw.vmm', 'netstat', 'kern.conftxt'])
  await read()
  t.strictSame(started.slice(3), ['hw.vmm', 'netstat'], 'a later call reads again what can change')
})
