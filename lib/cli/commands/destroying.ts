/** destroy, destroyall. */
import readline from 'node:readline'
import { visible } from '../../base/visible_text.js'
import type { Command, Context } from '../command.js'
import { exitStatus } from '../exit_status.js'
import { noneOf } from './stored.js'

export const destroy: Command = {
  name: 'destroy',
  aliases: ['rm'],
  usage: '<vm> <name ...>',
  summary: 'Remove the given checkpoints, even pinned ones and a suspended state',
  example: 'bhyve-checkpoint destroy vm1 before-upgrade',
  positionals: [2, Infinity],
  run: async ({ client, names, output }) => {
    const [vm = '', ...checkpoints] = names
    for (const name of checkpoints) {
      await client.destroyCheckpoint(vm, name)
      output.confirm({ type: 'destroyed', vm, name }, [`destroyed ${vm}/${name}`])
    }
    return exitStatus.done
  },
}

export const destroyAll: Command = {
  name: 'destroyall',
  usage: '<vm>',
  summary: 'Remove all checkpoints of a VM, even pinned ones and a suspended state',
  example: 'bhyve-checkpoint destroyall vm1',
  options: {
    yes: { short: 'y', help: 'Do not wait for a confirmation on a terminal' },
    'dry-run': { help: 'Print what would be removed; remove nothing' },
  },
  positionals: [1, 1],
  run: async (context) => {
    const { client, names, values, output } = context
    const [vm = ''] = names
    if (values.has('dry-run')) return dryRun(context, vm)
    if (!(await isConfirmed(context, vm))) {
      output.warn('Nothing was destroyed')
      return exitStatus.failed
    }
    const removed = await client.destroyAll(vm)
    for (const name of removed) output.confirm({ type: 'destroyed', vm, name }, [`destroyed ${vm}/${name}`])
    if (removed.length === 0) output.notice(noneOf(vm, values))
    return exitStatus.done
  },
}

async function dryRun({ client, output, values }: Context, vm: string): Promise<number> {
  const names = await client.destroyAll(vm, { dryRun: true })
  for (const name of names)
    output.result({ type: 'destroyed', vm, name, dryRun: true }, [`would destroy ${vm}/${name}`])
  if (names.length === 0) output.notice(noneOf(vm, values))
  return exitStatus.done
}

/** Without a terminal nobody could answer, and scripts call this command. */
async function isConfirmed({ client, values }: Context, vm: string): Promise<boolean> {
  if (values.has('yes') || !process.stdin.isTTY || !process.stderr.isTTY) return true
  const names = await client.destroyAll(vm, { dryRun: true })
  if (names.length === 0) return true
  const which = names.length === 1 ? 'the checkpoint' : `all ${String(names.length)} checkpoints`
  process.stderr.write(
    visible(`Destroy ${which} of VM '${vm}', even if pinned or the state of a suspended VM? [y/N] `),
  )
  // The terminal keeps its line mode, so that Ctrl-C ends the command.
  const answers = readline.createInterface({ input: process.stdin, terminal: false })
  const answer = await new Promise<string>((resolve) => {
    answers.once('line', resolve).once('close', () => resolve(''))
  })
  // Otherwise the terminal, which can be read, keeps this process alive.
  answers.close()
  return /^y(es)?$/i.test(answer.trim())
}
