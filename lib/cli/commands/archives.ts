/** export, import. */
import { pipeline } from 'node:stream/promises'
import type { Command, OptionSpec } from '../command.js'
import { checkpointMessage, savedLines } from '../checkpoint_text.js'
import { exitStatus } from '../exit_status.js'
import { UsageError } from '../usage_error.js'
import { parseDuration } from '../values.js'
import { interruptible } from '../waiting.js'

const timeout: OptionSpec = { value: 'time', help: 'Cancel after this time, e.g. 1h (default: never)' }

export const exportCommand: Command = {
  name: 'export',
  usage: '<vm> <name>',
  summary: 'Write a checkpoint as one archive to standard output',
  example: 'bhyve-checkpoint export vm1 before-upgrade >vm1.tar',
  options: {
    compress: {
      value: 'format',
      values: ['gzip', 'zstd'],
      help: 'gzip, or zstd with Node 22.15 or newer (default: none)',
    },
    copy: { help: 'Export the state of a suspended VM too; never restore both' },
    timeout,
  },
  positionals: [2, 2],
  run: (context) => {
    const { client, names, values, output } = context
    const [vm = '', name = ''] = names
    if (output.json) throw new UsageError('The archive is on standard output, so --json is not possible')
    if (process.stdout.isTTY)
      throw new UsageError('The archive is binary: redirect standard output to a file or a pipe')
    return interruptible(context, {
      doing: `Exporting checkpoint '${name}' of VM '${vm}'`,
      start: (signal) => {
        const compress = values.text('compress') as 'gzip' | undefined
        const wait = values.parsed('timeout', parseDuration)
        const options = {
          compress,
          copy: values.has('copy'),
          timeout: wait,
          signal,
          onProgress: output.onProgress,
        }
        return pipeline(client.exportCheckpoint(vm, name, options), process.stdout, { end: false })
      },
      done: () => exitStatus.done,
      left: { beforeStart: 'the archive is not complete', afterStart: 'the archive is not complete' },
      afterwards: () => Promise.resolve(),
    })
  },
}

export const importCommand: Command = {
  name: 'import',
  usage: '<vm> [name]',
  summary: 'Publish the checkpoint in an archive from standard input',
  example: 'bhyve-checkpoint import vm1 <vm1.tar',
  options: {
    'keep-existing': { help: 'Fail if a checkpoint of this name exists (default: replace it)' },
    'no-fsync': { help: 'Do not fsync: a power failure can lose the checkpoint' },
    'trust-arguments': { help: 'Keep the bhyve arguments in the archive, so that restore uses them' },
    timeout,
  },
  positionals: [1, 2],
  run: (context) => {
    const { client, names, values, output } = context
    const [vm = '', name] = names
    if (process.stdin.isTTY)
      throw new UsageError('The archive is read from standard input: redirect it from a file or a pipe')
    return interruptible(context, {
      doing: `Importing a checkpoint of VM '${vm}'`,
      start: (signal) =>
        client.importCheckpoint(vm, name, process.stdin, {
          ifExists: values.has('keep-existing') ? 'fail' : 'replace',
          fsync: !values.has('no-fsync'),
          trustArguments: values.has('trust-arguments'),
          timeout: values.parsed('timeout', parseDuration),
          onProgress: output.onProgress,
          signal,
        }),
      done: (checkpoint) => {
        output.result(checkpointMessage(checkpoint), savedLines(checkpoint, 'imported'))
        return exitStatus.done
      },
      left: { beforeStart: 'nothing was imported', afterStart: 'nothing was published' },
      afterwards: () => Promise.resolve(),
    })
  },
}
