// What zfs-fuse cannot do: several snapshots per call, and volumes. It takes those arguments of `zfs` and `zpool` that
// OpenZFS has too. Usage: zfs-stand-in.mjs STATE PROGRAM ARGUMENT...; STATE is a JSON file, which also logs the calls.
import fs from 'node:fs'

const [file, program, ...args] = process.argv.slice(2)
// The commands for two pools run at the same time.
const lock = `${file}.lock`
const deadline = Date.now() + 30_000
for (;;) {
  try {
    fs.mkdirSync(lock)
    break
  } catch (error) {
    if (error.code !== 'EEXIST' || Date.now() > deadline) throw error
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5)
  }
}
process.once('exit', () => fs.rmdirSync(lock))
const state = JSON.parse(fs.readFileSync(file, 'utf8'))
/** Name to local properties. `#...`: native properties. */
const { datasets } = state

function fail(message, status = 1) {
  process.stderr.write(`${message}\n`)
  process.exitCode = status
}

/** Options with a value, options without one, and operands. */
function parse(words, withValue) {
  const found = { o: [], flags: [], operands: [] }
  for (let index = 0; index < words.length; index++) {
    const word = words[index]
    if (withValue.includes(word)) {
      index++
      if (word === '-o') found.o.push(words[index])
    } else if (word.startsWith('-')) found.flags.push(word)
    else found.operands.push(word)
  }
  return found
}

const valuesIn = (options) => Object.fromEntries(options.map((one) => one.split(/=(.*)/s).slice(0, 2)))

function add(name, type, values) {
  state.guid++
  datasets[name] = { '#type': type, '#guid': String(state.guid), '#used': '512', ...values }
}

const commands = {
  get(words) {
    const [keys, ...names] = parse(words, ['-o', '-d']).operands
    for (const name of names) {
      const all = datasets[name]
      if (all === undefined) fail(`cannot open '${name}': dataset does not exist`)
      else
        for (const key of keys === 'all' ? Object.keys(all) : keys.split(','))
          print(name, key.replace('#', ''), all)
    }
  },
  list(words) {
    const { operands, flags } = parse(words, ['-o', '-d', '-t'])
    const isSnapshot = words.includes('snapshot')
    const isBelow = (name) =>
      operands.length === 0 || name === operands[0] || /^[/@]/.test(name.slice(operands[0].length))
    const names = Object.keys(datasets).filter((name) => name.includes('@') === isSnapshot)
    if (flags.includes('-r'))
      for (const name of names) if (name.startsWith(operands[0]) && isBelow(name)) console.log(name)
  },
  snapshot(words) {
    const { o, operands } = parse(words, ['-o'])
    const taken = operands.find((name) => datasets[name] !== undefined)
    const pools = new Set(operands.map((name) => name.split(/[/@]/)[0]))
    if (pools.size > 1) fail('cannot create snapshots: not all in one pool')
    else if (taken !== undefined) fail(`cannot create snapshot '${taken}': dataset already exists`)
    else
      for (const name of operands)
        add(name, 'snapshot', { '#userrefs': '0', '#defer_destroy': 'off', ...valuesIn(o) })
  },
  hold: ([, ...names]) => names.forEach((name) => (datasets[name]['#userrefs'] = '1')),
  release: ([, name]) => (datasets[name]['#userrefs'] = '0'),
  set: ([assignment, name]) => Object.assign(datasets[name], valuesIn([assignment])),
  inherit: ([key, name]) => delete datasets[name][key],
  destroy(words) {
    const name = words.at(-1)
    if (Object.keys(datasets).some((one) => one.startsWith(`${name}@`))) fail(`${name} has snapshots`)
    else delete datasets[name]
  },
  send(words) {
    const name = words.at(-1)
    if (words.includes('-nP')) fail('bad option', 2)
    else if (state.failing === 'send') fail('I/O error')
    else process.stdout.write(streamOf(name, datasets[name]))
  },
  receive(words) {
    const name = words.at(-1)
    if (state.failing === 'kill' && name.startsWith(state.failingName)) process.kill(process.ppid, 'SIGKILL')
    const stream = fs.readFileSync(0)
    if (datasets[name] !== undefined) fail(`destination '${name}' exists`)
    else if (state.failing === 'receive' && name.startsWith(state.failingName)) fail('out of space')
    else if (stream.length < header || stream.length < header + Number(stream.readBigUInt64LE(24)))
      fail('incomplete stream')
    else {
      const [from] = stream.toString('latin1', 56, header).split('\0')
      const data = stream.toString('latin1', header)
      add(name, 'volume', { '#data': data })
      const native = {
        '#guid': String(stream.readBigUInt64LE(40)),
        '#userrefs': '0',
        '#defer_destroy': 'off',
      }
      add(`${name}@${from.split('@')[1]}`, 'snapshot', { ...native, '#data': data })
    }
  },
  rename([from, to]) {
    for (const name of Object.keys(datasets).filter((one) => one === from || one.startsWith(`${from}@`))) {
      datasets[to + name.slice(from.length)] = datasets[name]
      delete datasets[name]
    }
    for (const one of Object.values(datasets))
      if (one['#origin']?.startsWith(`${from}@`)) one['#origin'] = to + one['#origin'].slice(from.length)
  },
  clone(words) {
    const { o, operands } = parse(words, ['-o'])
    const [origin, name] = operands
    const { '#type': type } = datasets[origin.split('@')[0]]
    add(name, type, { '#origin': origin, ...valuesIn(o) })
  },
}

const header = 312

/** As the first record of `zfs send`. Its time is the length of the data here. */
function streamOf(name, { '#guid': guid }) {
  const data = Buffer.from(datasets[name.split('@')[0]]['#data'] ?? '')
  const first = Buffer.alloc(header)
  first.writeBigUInt64LE(0x2f5bacbacn, 8)
  first.writeBigUInt64LE(state.failing === 'properties' ? 2n : 1n, 16)
  first.writeBigUInt64LE(BigInt(data.length), 24)
  first.writeBigUInt64LE(BigInt(guid) + (state.failing === 'other' ? 1n : 0n), 40)
  first.write(name, 56)
  return Buffer.concat([first, data])
}

function print(name, key, all) {
  const [value, source] = key in all ? [all[key], 'local'] : [all[`#${key}`] ?? '-', '-']
  if (args.includes('value')) return console.log(value)
  console.log([name, key, value, source].join('\t'))
}

state.calls.push([program, ...args].join(' '))
if (program === 'zfs') commands[args[0]](args.slice(1))
else if (args[0] === 'list')
  console.log(
    args.includes('altroot')
      ? '-'
      : Object.entries(state.pools)
          .map((one) => one.join('\t'))
          .join('\n'),
  )
else console.log(`NAME PROPERTY VALUE SOURCE\n${args[2]} readonly ${state.readonly} -`)
fs.writeFileSync(file, JSON.stringify(state))
