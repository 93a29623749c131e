/** Which VMs `jname` selects: names and masks, separated by blanks. `*` in a mask matches any text. */
import type { Context } from '../command.js'
import { checkpointLocation, runDirectoryFrom } from '../parse.js'
import { UsageError } from '../usage_error.js'

/** For commands that need running VMs: a mask matches those with a socket, except ended ones. */
export async function running(context: Context, jname: string): Promise<string[]> {
  const known = async (): Promise<string[]> =>
    (await context.client.listVirtualMachines()).filter(({ state }) => state !== 'off').map(({ vm }) => vm)
  return selected(jname, known, (mask) => {
    const message = `No running VM matches '${mask}' in ${runDirectoryFrom(context.values)}`
    return new context.api.CheckpointError('ERR_VM_NOT_RUNNING', message)
  })
}

/** For commands on stored checkpoints: a mask matches the VMs that have some. */
export async function stored(context: Context, jname: string): Promise<string[]> {
  return selected(
    jname,
    () => context.client.listStored(),
    (mask) => {
      const message = `No VM with checkpoints matches '${mask}' in ${checkpointLocation(context.values)}`
      return new context.api.CheckpointError('ERR_CHECKPOINT_NOT_FOUND', message)
    },
  )
}

/** A mask without a match is an error: a misspelled one must not appear to succeed. */
async function selected(
  jname: string,
  known: () => Promise<string[]>,
  unmatched: (mask: string) => Error,
): Promise<string[]> {
  const words = jname.split(/\s+/).filter((word) => word !== '')
  if (words.length === 0) throw new UsageError("The argument 'jname' must name a VM")
  const all = words.some((word) => word.includes('*')) ? await known() : []
  const vms = words.flatMap((word) => {
    const matching = word.includes('*') ? all.filter((vm) => matches(word, vm)) : [word]
    if (matching.length === 0) throw unmatched(word)
    return matching
  })
  return [...new Set(vms)]
}

/** Whether the parts of the mask between its asterisks occur in the name in this order. Linear, unlike a pattern. */
function matches(mask: string, name: string): boolean {
  const [first = '', ...others] = mask.split('*')
  const last = others.pop() ?? ''
  if (!name.startsWith(first) || !name.endsWith(last)) return false
  const end = name.length - last.length
  let at = first.length
  for (const part of others) {
    const found = name.indexOf(part, at)
    if (found === -1) return false
    at = found + part.length
  }
  return at <= end
}
