/**
 * Shared by all benchmarks: rounds, medians, tables, and a JSON file of everything that was measured. Figures that
 * count are ratios of two things measured alternately in the same run, because noise of the machine affects both.
 */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

export const KiB = 1024
export const MiB = 1024 * KiB
export const GiB = 1024 * MiB

const resultsFolder = fileURLToPath(new URL('../results', import.meta.url))

export function median(values) {
  return percentile(values, 50)
}

/** The nearest rank. For an even number of values the median is the lower one of the middle two. */
export function percentile(values, percent) {
  const sorted = [...values].sort((one, other) => one - other)
  return sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)]
}

/** The median of the ratios of the rounds. If something slows a whole round down, its ratio does not change. */
export function pairedRatio(ours, theirs) {
  return median(ours.map((value, round) => value / theirs[round]))
}

export async function timed(work) {
  const start = performance.now()
  const value = await work()
  return { ms: performance.now() - start, value }
}

/** Runs `work` for every item, `count` at a time. */
export async function inParallel(items, count, work) {
  const waiting = [...items]
  const worker = async () => {
    for (let item = waiting.shift(); item !== undefined; item = waiting.shift()) await work(item)
  }
  await Promise.all(Array.from({ length: Math.min(count, items.length) }, worker))
}

/** Collects the results of a benchmark, prints them, and writes them to a file. */
export class Report {
  #name
  #mode
  #startedAt = new Date()
  #loadBefore = os.loadavg()[0]
  #raw = {}
  #aims = []

  constructor(name, quick) {
    this.#name = name
    this.#mode = quick ? 'quick' : 'full'
    console.log(`\n== ${name} (${this.#mode}, load ${this.#loadBefore.toFixed(1)})`)
  }

  /** Stores raw numbers. */
  keep(key, values) {
    this.#raw[key] = values
  }

  table(title, columns, rows) {
    const cells = [columns, ...rows.map((row) => row.map(shown))]
    const widths = columns.map((_, column) => Math.max(...cells.map((row) => row[column].length)))
    const line = (row) => row.map((cell, column) => cell.padEnd(widths[column])).join('  ')
    console.log(`\n${title}`)
    console.log(line(columns))
    console.log(widths.map((width) => '-'.repeat(width)).join('  '))
    for (const row of cells.slice(1)) console.log(line(row))
  }

  atMost(what, value, limit) {
    this.#aim({ what, value, aim: `at most ${limit}`, met: value <= limit })
  }

  atLeast(what, value, limit) {
    this.#aim({ what, value, aim: `at least ${limit}`, met: value >= limit })
  }

  #aim(aim) {
    this.#aims.push(aim)
    console.log(`${aim.met ? 'met   ' : 'MISSED'}  ${aim.what}: ${shown(aim.value)} (${aim.aim})`)
  }

  /** A quick run must not overwrite the results of a full run. */
  save() {
    const file = this.#mode === 'quick' ? `${this.#name}.quick.json` : `${this.#name}.json`
    const { model } = os.cpus()[0]
    const machine = {
      cpus: os.cpus().length,
      model,
      memoryBytes: os.totalmem(),
      system: `${os.type()} ${os.release()}`,
      node: process.version,
      loadBefore: this.#loadBefore,
      loadAfter: os.loadavg()[0],
    }
    const result = {
      name: this.#name,
      mode: this.#mode,
      startedAt: this.#startedAt.toISOString(),
      machine,
      aims: this.#aims,
      raw: this.#raw,
    }
    fs.mkdirSync(resultsFolder, { recursive: true })
    fs.writeFileSync(path.join(resultsFolder, file), `${JSON.stringify(result, rounded, 1)}\n`)
  }
}

function rounded(_key, value) {
  return typeof value === 'number' && !Number.isInteger(value) ? Number(value.toPrecision(6)) : value
}

function shown(value) {
  if (typeof value !== 'number') return String(value)
  if (Number.isInteger(value)) return String(value)
  return Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3)
}

/** The result of an earlier run, or undefined. Prefers a full run to a quick one. */
export function readResult(name) {
  for (const file of [`${name}.json`, `${name}.quick.json`]) {
    const full = path.join(resultsFolder, file)
    if (fs.existsSync(full)) return JSON.parse(fs.readFileSync(full, 'utf8'))
  }
  return undefined
}
