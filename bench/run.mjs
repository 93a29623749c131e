// `npm run bench -- <name> [--quick]` measures, prints tables, and writes bench/results/<name>.json. `all` runs all
// benchmarks and draws the plots.
import { Report } from './support/harness.mjs'
import { Scratch } from './support/scratch.mjs'

const names = [
  'event-loop',
  'truth',
  'latency',
  'throughput',
  'removal',
  'rates',
  'holes',
  'disk',
  'many',
  'listing',
  'freeze',
  'stage',
  'archive',
  'verify',
]
const [name, ...flags] = process.argv.slice(2)
const chosen = name === 'all' ? names : names.filter((known) => known === name)
if (name === 'plots' || name === 'summary') {
  await import(`./${name}.mjs`)
} else if (chosen.length === 0 || flags.some((flag) => flag !== '--quick')) {
  console.error(`npm run bench -- <name> [--quick]\nnames: all, ${names.join(', ')}, plots, summary`)
  process.exitCode = 64
}
const quick = flags.includes('--quick')
for (const one of chosen) {
  const { measure } = await import(`./${one}.mjs`)
  const report = new Report(one, quick)
  const scratch = new Scratch()
  try {
    await measure({ report, quick, scratch })
  } finally {
    scratch.remove()
  }
  report.save()
}
if (name === 'all' && !quick) await import('./plots.mjs')
