/** label. */
import type { Command } from '../command.js'
import { exitStatus } from '../exit_status.js'
import { labelTexts, parseChanges } from '../labels.js'
import { UsageError } from '../usage_error.js'

export const label: Command = {
  name: 'label',
  usage: '<vm> <name> <key=value | key-> ...',
  summary: "Add or change labels of a checkpoint, or remove them ('key-'); other labels stay",
  example: 'bhyve-checkpoint label vm1 before-upgrade ticket=4711 draft-',
  positionals: [2, Infinity],
  run: async ({ client, names, output }) => {
    const [vm = '', name = '', ...words] = names
    if (words.length === 0)
      throw new UsageError("The command 'label' needs a label: key=value, or key- to remove it")
    await client.labelCheckpoint(vm, name, parseChanges(words))
    const listed = (await client.listCheckpoints(vm)).find((one) => one.name === name)
    const { labels = {} } = listed ?? {}
    const texts = labelTexts(labels)
    const lines = [`labeled ${vm}/${name}`, ...texts.map((text) => `  ${text}`)]
    output.confirm({ type: 'labeled', vm, name, labels }, lines)
    return exitStatus.done
  },
}
