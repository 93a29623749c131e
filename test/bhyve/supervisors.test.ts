/** Which program waits for a bhyve process, and whether it may start the VM again. */
import { type ChildProcess, spawn } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import t, { type Test } from 'tap'
import { parseDatastores } from '../../dist/bhyve/supervisors/datastores.js'
import { type Supervisor, supervisorOf } from '../../dist/bhyve/supervisors/find.js'
import { childEnvironment, failure, intercept, scratch, until } from '../support/index.js'

const needsArguments = { skip: process.platform === 'darwin' && 'macOS reports no arguments' }

/** Starts a program that starts a process. The process writes its pid to the file `pid` in the directory. */
class Family {
  readonly directory: string
  readonly #t: Test

  constructor(t: Test) {
    this.#t = t
    this.directory = scratch(t)
    this.file('bhyve', 'echo $$ > pid.new; mv pid.new pid; exec sleep 60')
  }

  file(name: string, text: string): string {
    const file = path.join(this.directory, name)
    fs.writeFileSync(file, `#!/bin/sh\n${text}\n`, { mode: 0o755 })
    return file
  }

  async start(program: string, args: readonly string[], argv0 = program): Promise<number> {
    const options = {
      cwd: this.directory,
      env: childEnvironment(),
      argv0,
      detached: true,
      stdio: 'ignore',
    } as const
    const child: ChildProcess = spawn(program, args, options)
    // The group, because a shell does not end its child.
    this.#t.teardown(() => process.kill(-child.pid!, 'SIGKILL'))
    const file = path.join(this.directory, 'pid')
    await until(() => fs.existsSync(file), 'the process')
    const pid = Number(fs.readFileSync(file, 'utf8'))
    fs.rmSync(file)
    return pid
  }

  find(pid: number): Supervisor | undefined {
    return supervisorOf({ vm: 'vm1', pid, libvirtDirectory: path.join(this.directory, 'libvirt') })
  }
}

/** Keeps the shell from replacing itself by its last command. */
const waiting = './bhyve; status=$?; exit $status'

t.test('supervisors are told apart by the ancestors of the process', needsArguments, async (t) => {
  const family = new Family(t)
  const vm = family.file('vm', waiting)
  // A program of this name that waits for its child. A script would have the shell as its program.
  fs.symlinkSync('/bin/sh', path.join(family.directory, 'lockf'))
  const locked = `./lockf -c '${waiting}'; exit $?`
  const cases: [kind: string, program: string, args: string[], evidence: RegExp, argv0?: string][] = [
    ['vm-bhyve', vm, ['_run', 'vm1', ''], /\/vm'$/],
    ['cbsd', family.file('bhyverun.sh', locked), ['-c', 'bhyve.conf'], /\/bhyverun\.sh'$/],
    ['script', family.file('wrapped', locked), [], /\/wrapped'$/],
    ['script', vm, ['start', 'vm1'], /\/vm'$/],
    ['script', family.file('vmrun.sh', waiting), ['-c', '2', 'vm1'], /\/vmrun\.sh'$/],
    ['script', '/bin/sh', ['-c', `password=secret; ${waiting}`], /'\/bin\/sh -c'$/],
    ['script', '/bin/sh', ['-ec', `password=secret; ${waiting}`], /'\/bin\/sh -c'$/],
    [
      'daemon',
      '/bin/sh',
      ['-c', waiting],
      /'daemon: \/usr\/sbin\/bhyve\[1\]'$/,
      'daemon: /usr/sbin/bhyve[1]',
    ],
    ['libvirt', '/bin/sh', ['-c', waiting], /libvirtd'$/, '/usr/local/sbin/libvirtd'],
    ['other', '/bin/sh', ['-c', waiting], /'python3'$/, 'python3'],
    ['other', '/bin/sh', ['-c', waiting], /'title\?\[31m\?'$/, 'title\u001b[31m\n'],
  ]
  for (const [kind, program, args, evidence, argv0] of cases) {
    const found = family.find(await family.start(program, args, argv0))
    t.match(found, { kind, evidence }, `${kind}: ${String(found?.evidence)}`)
    t.notMatch(found?.evidence, /secret/)
  }
})

t.test('a process that nobody else waits for has no supervisor', needsArguments, async (t) => {
  const family = new Family(t)
  t.equal(family.find(await family.start('./bhyve', [])), undefined, 'a child of this process')
  const left = await family.start('/bin/sh', ['-c', './bhyve &'])
  t.teardown(() => process.kill(left, 'SIGKILL'))
  intercept(t, 'processStatus', (pid) =>
    pid === left ? { state: 'running', startedAt: '1', parent: 1 } : undefined,
  )
  t.equal(family.find(left), undefined, 'a child of init')
  t.equal(family.find(2 ** 30), undefined, 'no process')
})

t.test('the shell that started this process, too, is no supervisor', needsArguments, async (t) => {
  const family = new Family(t)
  const pid = await family.start('./bhyve', [])
  intercept(t, 'processStatus', (of) =>
    of === pid ? { state: 'running', startedAt: '1', parent: process.ppid } : undefined,
  )
  const words = (text: string): Buffer => Buffer.from(text.replaceAll(' ', '\0') + '\0')
  const restore = intercept(t, 'processArguments', () => words('/bin/sh suite.sh'))
  t.equal(family.find(pid), undefined)
  restore()
  intercept(t, 'processArguments', () => words('/bin/sh /usr/local/sbin/vm _run vm1'))
  t.match(family.find(pid), { kind: 'vm-bhyve' }, 'but vm-bhyve always is one')
})

t.test('a process that libvirt has recorded is detached, and still has a supervisor', async (t) => {
  const family = new Family(t)
  const pid = await family.start('./bhyve', [])
  const directory = path.join(family.directory, 'libvirt')
  const record = path.join(directory, 'vm1.pid')
  fs.mkdirSync(directory)
  for (const [text, kind] of [
    [`${pid}`, 'libvirt'],
    [`${pid}\n`, 'libvirt'],
    [`${pid}0`, undefined],
    ['', undefined],
  ]) {
    fs.writeFileSync(record, text!)
    t.equal(family.find(pid)?.kind, kind, JSON.stringify(text))
  }
  fs.rmSync(record)
  fs.symlinkSync(family.file('elsewhere', String(pid)), record)
  t.equal(family.find(pid), undefined, 'a link is not followed')
  fs.rmSync(record)
  fs.mkdirSync(record)
  t.equal(family.find(pid), undefined)
})

t.test('without a descriptor, a supervisor does not count as absent', async (t) => {
  const family = new Family(t)
  const pid = await family.start('./bhyve', [])
  for (const call of ['processArguments', 'processStatus'] as const) {
    const restore = intercept(t, call, () => failure('EMFILE', 'open'))
    t.throws(() => family.find(pid), { code: 'ERR_SYSTEM' }, call)
    restore()
  }
})

t.test('datastores: those that hold VMs, in their order', (t) => {
  const text = [
    'NAME            TYPE        PATH                      ZFS DATASET',
    'default         zfs         /zroot/vm                 zroot/vm',
    'iso             iso         /vm/iso                   -',
    'img             img         /vm/img                   -',
    'second          directory   /mnt/with space/vms       -',
    'broken          zfs                                   zroot/unmounted',
    '',
  ].join('\n')
  t.strictSame(parseDatastores(text), ['/zroot/vm', '/mnt/with space/vms'])
  t.strictSame(parseDatastores('vm: ERROR: $vm_dir has not been configured'), [])
  t.end()
})
