/** bhyve's metadata: upstream's own files, and everything that can be wrong with them. */
import fs from 'node:fs'
import path from 'node:path'
import t from 'tap'
import { deviceNames, kernelBytes, parseMetadata } from '../dist/inspect/metadata.js'
import { fixtures } from './support/index.js'

const read = (name: string): string => fs.readFileSync(path.join(fixtures, 'golden/meta', name), 'utf8')
const descriptor = read('descriptor.meta')
const older = read('path.meta')

type Json = Record<string, unknown>

/** The golden metadata with one thing changed. */
function changed(text: string, change: (root: Record<string, Json & Json[]>) => unknown): string {
  const root = JSON.parse(text) as Record<string, Json & Json[]>
  change(root)
  return JSON.stringify(root)
}

function codeOf(text: string): string {
  const result = parseMetadata(text)
  return 'problem' in result ? result.problem.code : 'good'
}

t.test("upstream's own files", async (t) => {
  const current = parseMetadata(descriptor)
  t.match(current, { metadata: { vm: 'ubuntu', cpus: 2, memoryBytes: 4194304 } })
  if ('metadata' in current) {
    t.equal(kernelBytes(current.metadata), 24472)
    t.strictSame(deviceNames(current.metadata), [
      'hostbridge@pci.0.0.0',
      'ahci-cd@pci.0.2.0',
      'virtio-blk@pci.0.3.0',
      'virtio-net@pci.0.4.0',
      'lpc@pci.0.31.0',
      'atkbdc',
    ])
  }
  const old = parseMetadata(older)
  t.match(old, { metadata: { vm: 'ubuntu', cpus: 2 } })
  if ('metadata' in old) {
    t.equal(kernelBytes(old.metadata), 23088)
    t.strictSame(
      deviceNames(old.metadata),
      ['atkbdc', 'virtio-net', 'virtio-blk', 'lpc'],
      'absent ones are not there',
    )
  }
})

t.test('a run that failed half-way is told apart from nonsense', async (t) => {
  t.match(parseMetadata(read('failed-at-kernel-structure.meta')), {
    problem: { code: 'metadata-incomplete', message: /end in the middle/ },
  })
  t.equal(codeOf(''), 'metadata-incomplete')
  for (const text of [descriptor, older]) {
    const end = text.trimEnd().length
    for (let length = 1; length < end; length++) {
      if (codeOf(text.slice(0, length)) !== 'metadata-incomplete') t.fail(`cut at ${length}`)
    }
  }
  for (const text of [
    'x',
    '[]',
    '"text"',
    '5',
    'null',
    '{}}',
    '{"a":}',
    '\0',
    `${descriptor}x`,
    '{"a" "b"}',
  ]) {
    t.equal(codeOf(text), 'metadata-invalid', text.slice(-10))
  }
})

t.test('sections that are missing', async (t) => {
  for (const [text, keys] of [
    [descriptor, ['basic metadata', 'kern_structs', 'devices']],
    [older, ['basic metadata', 'structs', 'devices']],
  ] as const) {
    for (const key of keys)
      t.equal(codeOf(changed(text, (root) => delete root[key])), 'metadata-incomplete', key)
  }
  for (const key of ['ncpus', 'vmname', 'memsize']) {
    t.equal(
      codeOf(changed(descriptor, (root) => delete root['basic metadata']![key])),
      'metadata-incomplete',
      key,
    )
  }
  for (const key of ['device', 'size', 'file_offset']) {
    t.equal(codeOf(changed(descriptor, (root) => delete root.devices![0]![key])), 'metadata-incomplete', key)
  }
  for (const [text, key] of [
    [descriptor, 'kern_structs'],
    [older, 'structs'],
  ] as const) {
    const { length } = (JSON.parse(text) as Record<string, unknown[]>)[key]!
    for (let index = 0; index < length; index++) {
      const without = changed(text, (root) => (root[key]![index]!.size = 0))
      t.equal(codeOf(without), 'metadata-incomplete', `${key} ${index} empty`)
      t.not(
        codeOf(changed(text, (root) => (root[key]! as unknown[]).splice(index, 1))),
        'good',
        `${key} ${index} gone`,
      )
    }
  }
})

t.test('values that cannot be', async (t) => {
  for (const value of ['600', -1, 1.5, null, 2 ** 53, true, [], {}]) {
    const what = JSON.stringify(value)
    t.equal(
      codeOf(changed(descriptor, (root) => (root.devices![0]!.size = value))),
      'metadata-invalid',
      `size ${what}`,
    )
    t.equal(
      codeOf(changed(descriptor, (root) => (root['basic metadata']!.memsize = value))),
      'metadata-invalid',
      `memsize ${what}`,
    )
  }
  t.equal(codeOf(changed(descriptor, (root) => (root['basic metadata']!.vmname = 5))), 'metadata-invalid')
  t.equal(codeOf(changed(descriptor, (root) => Object.assign(root, { devices: {} }))), 'metadata-invalid')
  t.equal(codeOf(changed(descriptor, (root) => Object.assign(root, { devices: [5] }))), 'metadata-invalid')
  t.equal(
    codeOf(changed(descriptor, (root) => (root.devices![2]!.file_offset = 0))),
    'metadata-invalid',
    'overlap',
  )
  t.equal(codeOf(changed(descriptor, (root) => (root.devices![2]!.size = 1))), 'metadata-invalid', 'gap')
  t.equal(
    codeOf(changed(descriptor, (root) => (root.devices!.at(-1)!.size = 2 ** 53 - 1))),
    'metadata-invalid',
    'a sum that is not exact any more',
  )
  const hostile = descriptor.replace('"basic metadata"', '"__proto__": {"structs": []}, "basic metadata"')
  t.equal(codeOf(hostile), 'good', 'a key of that name is nothing but a key')
})
