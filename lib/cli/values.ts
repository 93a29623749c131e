/** Parses and formats sizes, durations and times. */
import { UsageError } from './usage_error.js'

const binaryUnits = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']
const sizeFactors: Readonly<Record<string, number>> = {
  '': 1,
  K: 2 ** 10,
  M: 2 ** 20,
  G: 2 ** 30,
  T: 2 ** 40,
}
const durationFactors: Readonly<Record<string, number>> = {
  ms: 1,
  s: 1_000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
}

/** Parses a size such as `500G`. Units are powers of 1024, as in bhyve's `-m`. */
export function parseSize(text: string, option: string): number {
  const [, number, unit = ''] = /^(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?$/i.exec(text) ?? []
  const factor = sizeFactors[unit.toUpperCase()]
  if (number === undefined || factor === undefined)
    throw new UsageError(`${option} must be a size such as 512M or 4G, not '${text}'`)
  return Math.round(Number(number) * factor)
}

/** Parses a duration such as `7d`. The unit is required, because a bare 10 is ambiguous. */
export function parseDuration(text: string, option: string): number {
  const [, number, unit = ''] =
    /^(\d+(?:\.\d+)?)(ms|s|m|h|d)$/.exec(text) ?? (text === '0' ? ['', '0', 's'] : [])
  const factor = durationFactors[unit]
  if (number === undefined || factor === undefined)
    throw new UsageError(`${option} must be a duration such as 30s, 10m, 12h or 7d, not '${text}'`)
  return Math.round(Number(number) * factor)
}

export function parseCount(text: string, option: string): number {
  if (!/^\d+$/.test(text)) throw new UsageError(`${option} must be a whole number, not '${text}'`)
  return Number(text)
}

export function formatSize(bytes: number | undefined): string {
  if (bytes === undefined) return '-'
  let value = bytes
  let unit = 0
  for (; value >= 1024 && unit < binaryUnits.length - 1; unit += 1) value /= 1024
  return `${unit === 0 ? String(value) : value.toFixed(1)} ${binaryUnits[unit] ?? ''}`
}

/** For progress: a number whose unit changes while it grows cannot be compared at a glance. */
export function formatMebibytes(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`
}

/** Formats local time to the minute, with its offset from UTC: `2026-11-29 23:44 +0100`. */
export function formatTime(date: Date | undefined): string {
  return date === undefined ? '-' : `${dayOf(date)} ${clockOf(date)} ${offsetOf(date)}`
}

/** The same to the second. */
export function formatExactTime(date: Date | undefined): string {
  if (date === undefined) return '-'
  return `${dayOf(date)} ${clockOf(date)}:${two(date.getSeconds())} ${offsetOf(date)}`
}

function dayOf(date: Date): string {
  return [String(date.getFullYear()), two(date.getMonth() + 1), two(date.getDate())].join('-')
}

function clockOf(date: Date): string {
  return `${two(date.getHours())}:${two(date.getMinutes())}`
}

function offsetOf(date: Date): string {
  const minutes = -date.getTimezoneOffset()
  const size = Math.abs(minutes)
  return `${minutes < 0 ? '-' : '+'}${two(Math.floor(size / 60))}${two(size % 60)}`
}

function two(number: number): string {
  return String(number).padStart(2, '0')
}

/** Formats a duration as `1:05` or `2:03:04`. */
export function formatClock(milliseconds: number): string {
  const seconds = Math.round(milliseconds / 1000)
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60]
  const shown = parts[0] === 0 ? parts.slice(1) : parts
  return shown.map((part, index) => (index === 0 ? String(part) : String(part).padStart(2, '0'))).join(':')
}
