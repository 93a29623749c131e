/** doctor. */
import type { Finding } from '../../index.js'
import type { Command, Setting } from '../command.js'
import { exitStatus } from '../exit_status.js'
import type { Output } from '../output.js'
import { tableLines } from '../table.js'

const statuses: Readonly<Record<Finding['level'], number>> = {
  ok: exitStatus.done,
  warning: exitStatus.failed,
  problem: exitStatus.damaged,
}

export const doctor: Command = {
  name: 'doctor',
  usage: '',
  summary: 'Check whether this host can save VMs, and what waits to be recovered; changes nothing',
  example: 'bhyve-checkpoint doctor',
  positionals: [0, 0],
  run: async ({ client, settings, output }) => {
    const findings = await client.diagnose()
    if (output.json) {
      for (const finding of findings) output.result({ type: 'finding', ...finding }, [])
      for (const setting of settings) output.result({ type: 'setting', ...setting }, [])
    } else output.result({ type: 'findings' }, [...lines(findings, output), '', ...inForce(settings, output)])
    return Math.max(...findings.map(({ level }) => statuses[level]))
  },
}

/** The advice follows on a line of its own, so that the columns stay narrow. */
function lines(findings: readonly Finding[], output: Output): string[] {
  const paint = (level: string): string => output.paint(level.trim() === 'ok' ? 'good' : 'bad', level)
  const columns = [
    { title: 'LEVEL', paint },
    { title: 'VM' },
    { title: 'CODE' },
    { title: 'FINDING', wraps: true },
  ]
  const rows = findings.map(({ level, code, message, vm }) => [level, vm ?? '-', code, message])
  return tableLines(
    columns,
    rows,
    output,
    findings.map(({ advice }) => advice),
  )
}

function inForce(settings: readonly Setting[], output: Output): string[] {
  const columns = [{ title: 'SETTING' }, { title: 'VALUE' }, { title: 'FROM' }]
  const rows = settings.map(({ key, value, from }) => [key, value, from])
  return tableLines(columns, rows, output)
}
