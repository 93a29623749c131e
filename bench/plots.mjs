/** `npm run bench -- plots` draws from bench/results into docs/performance/ how cost grows. */
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { KiB, median, MiB, pairedRatio, readResult } from './support/harness.mjs'
import { lineChart } from './support/line_chart.mjs'

const directory = fileURLToPath(new URL('../docs/performance', import.meta.url))

/** Each function returns a chart of the raw figures of one benchmark. */
const plots = {
  'event-loop': ({ runs }) => {
    const ways = [...new Set(runs.map(({ way }) => way))]
    const of = (way) => {
      const sizes = [...new Set(runs.map(({ rssMiB }) => rssMiB))]
      const maxima = (size) =>
        runs.filter((one) => one.way === way && one.rssMiB === size).map(({ max }) => max)
      return sizes.map((size) => [size, median(maxima(size))])
    }
    return {
      title: 'Longest block of the event loop, 50 checkpoints',
      x: 'RSS of the host program, MiB',
      y: 'ms',
      series: ways.map((way) => ({ name: way, points: of(way) })),
    }
  },
  latency: ({ byRam }) => ({
    title: "From the end of bhyve's work to the promise, all features on",
    x: 'guest RAM, MiB',
    y: 'ms',
    series: [
      { name: 'half zero', points: byRam.map((one) => [one.memoryBytes / MiB, median(one.afterEndMs)]) },
    ],
  }),
  throughput: ({ guests }) => ({
    title: 'One checkpoint, all features on, over dd conv=fsync + openssl dgst',
    x: 'guest RAM, MiB',
    y: 'ratio',
    series: [0.5, 0].map((fraction) => ({
      name: fraction === 0 ? 'all random' : 'half zero',
      points: guests
        .filter(({ zeroFraction }) => zeroFraction === fraction)
        .map((one) => {
          const sums = one.ddMs.map((ms, round) => ms + one.opensslMs[round])
          return [one.memoryBytes / MiB, pairedRatio(one.oursMs, sums)]
        }),
    })),
  }),
  many: ({ runs }) => {
    const counts = [...new Set(runs.map(({ count }) => count))]
    const of = (way) => (count) => [
      count,
      median(runs.filter((one) => one.count === count).map((one) => one[way].ms)),
    ]
    return {
      title: 'Checkpoints of many VMs at once, 256 KiB of RAM each',
      x: 'VMs',
      y: 'ms',
      series: [
        { name: 'bhyve-checkpoint, digested and fsynced', points: counts.map(of('ours')) },
        { name: 'bare sockets, nothing checked', points: counts.map(of('bare')) },
      ],
    }
  },
  listing: ({ oneDirectory }) => ({
    title: 'Listing checkpoints of one directory',
    x: 'checkpoints',
    y: 'ms',
    series: [
      ['bhyve-checkpoint', 'oursMs'],
      ['find -printf', 'findMs'],
      ['shell script', 'shellMs'],
    ].map(([name, key]) => {
      const measured = oneDirectory.filter((one) => one[key].length > 0)
      return { name, points: measured.map((one) => [one.count, median(one[key])]) }
    }),
  }),
  holes: ({ holes }) => ({
    title: 'Stored part of an image that is half zero, by the smallest hole',
    x: 'smallest hole, KiB',
    y: 'stored, %',
    series: [...new Set(holes.map(({ layout }) => layout))].map((layout) => ({
      name: layout,
      points: holes
        .filter((one) => one.layout === layout)
        .map((one) => [
          one.leastHoleBytes / KiB,
          100 * median(one.rounds.map(({ storedFraction }) => storedFraction)),
        ]),
    })),
  }),
}

fs.mkdirSync(directory, { recursive: true })
for (const [name, chartOf] of Object.entries(plots)) {
  const result = readResult(name)
  if (result === undefined) console.log(`${name}: not measured yet`)
  else fs.writeFileSync(path.join(directory, `${name}.svg`), lineChart(chartOf(result.raw)))
}
