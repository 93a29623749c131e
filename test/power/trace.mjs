// Parses strace's output (record.mjs has the options) into one event per call, in the order in which the calls
// returned. If another thread's call comes between, strace splits a call into two lines (`<unfinished ...>`,
// `resumed`). `startedAt` is the number of events that had ended when the call started: an fsync covers only those
// events.
import { Buffer } from 'node:buffer'

const line = /^(\d+) +(\d+)\.(\d+) (.*)$/s
const unfinished = ' <unfinished ...>'
const resumed = /^<\.\.\. (\w+) resumed>(.*)$/s
const call = /^(\w+)\((.*)\) += (-?\d+)(<([^>]*)>(\(deleted\))?)?( .*)?$/s

/** Yields events: `pid`, `time` in nanoseconds, `call`, `args`, `result`, `startedAt`. */
export function* eventsIn(text) {
  const begun = new Map()
  let ended = 0
  for (const entry of text.split('\n')) {
    const parts = line.exec(entry)
    if (parts === null) continue
    const [, pid, seconds, micros, label] = parts
    if (label.endsWith(unfinished)) {
      begun.set(pid, { label: label.slice(0, -unfinished.length), startedAt: ended })
      continue
    }
    const rest = resumed.exec(label)
    const start = rest === null ? undefined : begun.get(pid)
    if (rest !== null && start === undefined) continue
    const event = parse((start?.label ?? '') + (rest?.[2] ?? label))
    begun.delete(pid)
    if (event === undefined) continue
    yield {
      ...event,
      pid: Number(pid),
      time: BigInt(seconds + micros) * 1000n,
      startedAt: start?.startedAt ?? ended,
    }
    ended++
  }
}

function parse(label) {
  const parts = call.exec(label)
  if (parts === null) return undefined // a signal, an end, or a call that never returned
  const [, name, args, result] = parts
  return { call: name, args: splitArguments(args).map(valueOf), result: Number(result) }
}

/** Splits at commas outside strings, descriptors' paths and lists. */
function splitArguments(text) {
  const parts = []
  let depth = 0
  let start = 0
  for (let at = 0; at < text.length; at++) {
    const character = text[at]
    if (character === '"') at = text.indexOf('"', at + 1)
    else if (character === '<') at = text.indexOf('>', at + 1)
    else if (character === '[' || character === '{') depth++
    else if (character === ']' || character === '}') depth--
    else if (character === ',' && depth === 0) {
      parts.push(text.slice(start, at))
      start = at + 2
    }
  }
  return [...parts, text.slice(start)]
}

/** A string becomes a Buffer, a descriptor `{ path, isDeleted }`; flags, numbers and structures stay text. */
function valueOf(text) {
  if (text.startsWith('"')) return bytesOf(text.slice(1, text.indexOf('"', 1)))
  const descriptor = /^(?:\d+|AT_FDCWD)<([^>]*)>(\(deleted\))?$/.exec(text)
  if (descriptor === null) return text
  return { path: bytesOf(descriptor[1]).toString(), isDeleted: descriptor[2] !== undefined }
}

/** With -xx every byte is `\xNN`, except in what strace adds itself (`socket:`). */
function bytesOf(text) {
  if (/^(\\x[0-9a-f]{2})*$/.test(text.slice(0, 64)) && text.length % 4 === 0)
    return Buffer.from(text.replaceAll('\\x', ''), 'hex')
  return Buffer.from(
    text.replace(/\\x([0-9a-f]{2})/g, (_, hex) => String.fromCharCode(parseInt(hex, 16))),
    'latin1',
  )
}
