/** `npm run bench -- summary` prints the aims and the measured values, as the table of docs/benchmarks.md. */
import { readResult } from './support/harness.mjs'

const names = [
  'event-loop',
  'truth',
  'latency',
  'throughput',
  'removal',
  'rates',
  'disk',
  'many',
  'listing',
  'stage',
  'archive',
  'verify',
]

console.log('| benchmark | load | what | measured | aim | |\n| --- | --- | --- | --- | --- | --- |')
for (const name of names) {
  const result = readResult(name)
  for (const { what, value, aim, met } of result?.aims ?? []) {
    const load = Math.max(result.machine.loadBefore, result.machine.loadAfter).toFixed(0)
    const shown = Number.isInteger(value) ? value : Number(value.toPrecision(3))
    console.log(
      `| ${name} (${result.mode}) | ${load} | ${what} | ${shown} | ${aim} | ${met ? '' : '**missed**'} |`,
    )
  }
}
