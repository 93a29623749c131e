/** The messages of a move. docs/move.md has their order. All of them can be repeated. The other host is not trusted. */
import type { MoveState } from '../../base/move_state.js'
import type { MoveBlocker, MoveWarning } from '../../base/move_types.js'
import { isCheckpointName, isUuid, isVmName } from '../../base/names.js'
import { isMoveText } from '../../checkpoint/move_record.js'
import { isDatasetName } from '../../disks/zfs/names.js'
import { isSentDataset, maxSentDatasets, type SentDataset } from '../../disks/zfs/sent_dataset.js'

/** What the receiver needs to know to plan the VM. */
export interface MoveFacts {
  /** The architecture and the CPU model of the host that sends the VM. */
  machine: string
  cpuModel: string
  /** The generation of bhyve that writes the checkpoint, if it is known. */
  generation?: string | undefined
  memoryBytes?: number | undefined
  /** bhyve's arguments, and the directory in which it runs. */
  args: readonly string[]
  directory: string
}

export interface PlanMessage {
  type: 'plan'
  id: string
  vm: string
  name: string
  /** The name of the host that sends the VM, and the store that the VM comes from. */
  host: string
  origin: string
  facts: MoveFacts
  anyCpu: boolean
  /** The datasets that are sent. Absent: both hosts have the disks. */
  disks?: readonly SentDataset[] | undefined
}

/** A copy on the receiver that the sender of this VM has left there. */
export interface LeftCopy {
  id: string
  state: 'arriving' | 'not-started'
}

export type Found<Code> = readonly { code: Code; message: string }[]

/**
 * From the sender. `drop`: the sender never commits these moves, or has withdrawn them. `disk`: the data that follow are
 * of this dataset. `end`: no data follow.
 */
export type ToReceiver =
  | PlanMessage
  | { type: 'drop'; id: string; vm: string; origin: string; copies: readonly LeftCopy[] }
  | { type: 'send'; id: string }
  | { type: 'disk'; id: string; dataset: string }
  | { type: 'end'; id: string }
  | { type: 'release'; id: string; vm: string }
  | { type: 'status'; id: string; vm: string }

/**
 * From the receiver. `receivesDisks`: it has understood that disks are sent. `started`: the VM ran here. `message`: it has ended since. `doubtful`: the receiver does not know
 * whether it did, or does not know the move.
 */
export type ToSender =
  | {
      type: 'planned'
      id: string
      blockers: Found<MoveBlocker>
      warnings: Found<MoveWarning>
      left: readonly LeftCopy[]
      receivesDisks?: boolean | undefined
    }
  | { type: 'dropped'; id: string }
  | { type: 'prepared'; id: string }
  | { type: 'refused'; id: string; message: string; blockers: Found<MoveBlocker> }
  | { type: 'started'; id: string; pid?: number | undefined; message?: string | undefined }
  | { type: 'not-started'; id: string; message: string }
  | { type: 'doubtful'; id: string; message: string }
  | { type: 'state'; id: string; state: MoveState | 'unknown'; message: string }

export type Message = ToReceiver | ToSender

type Fields = Readonly<Record<string, unknown>>
type Check = (value: unknown) => boolean

const maxList = 256
const maxMessage = 16_384
const maxWords = 4_096
const maxWord = 65_536

/** A terminal would execute other control characters. */
const control = /(?!\n)\p{Cc}/gu
const isText: Check = (value) =>
  typeof value === 'string' && value.length <= maxMessage && value.search(control) === -1
const isCount: Check = (value) => Number.isSafeInteger(value) && (value as number) >= 0
const isVm: Check = (value) => typeof value === 'string' && isVmName(value)
const isName: Check = (value) => typeof value === 'string' && isCheckpointName(value)
const isFlag: Check = (value) => typeof value === 'boolean'
const isWord: Check = (value) => typeof value === 'string' && value.length <= maxWord && !value.includes('\0')
const isFinding: Check = (value) => hasFields(value, { code: isMoveText, message: isText })
const isLeftCopy: Check = (value) =>
  hasFields(value, { id: isUuid, state: (state) => state === 'arriving' || state === 'not-started' })

const facts: Readonly<Record<string, Check>> = {
  machine: isMoveText,
  cpuModel: isMoveText,
  generation: optional(isMoveText),
  memoryBytes: optional(isCount),
  args: listOf(isWord, maxWords),
  directory: (value) => isWord(value) && (value as string).startsWith('/'),
}

/** The properties of each message besides `type` and `id`. */
const known: Readonly<Record<Message['type'], Readonly<Record<string, Check>>>> = {
  plan: {
    ...{ vm: isVm, name: isName, host: isMoveText, origin: isMoveText, anyCpu: isFlag },
    facts: (value) => hasFields(value, facts),
    disks: optional(listOf(isSentDataset, maxSentDatasets)),
  },
  drop: { vm: isVm, origin: isMoveText, copies: listOf(isLeftCopy, maxList) },
  send: {},
  disk: { dataset: (value) => typeof value === 'string' && isDatasetName(value) },
  end: {},
  release: { vm: isVm },
  status: { vm: isVm },
  planned: {
    ...{ blockers: listOf(isFinding, maxList), warnings: listOf(isFinding, maxList) },
    left: listOf(isLeftCopy, maxList),
    receivesDisks: optional(isFlag),
  },
  dropped: {},
  prepared: {},
  refused: { message: isText, blockers: listOf(isFinding, maxList) },
  started: { pid: optional(isCount), message: optional(isText) },
  'not-started': { message: isText },
  doubtful: { message: isText },
  state: { state: isMoveText, message: isText },
}

/** Undefined if the text is not a message. Unknown properties are ignored: a later release may add some. */
export function parseMessage(text: string): Message | undefined {
  const value = parsed(text)
  if (!isObject(value) || !isUuid(value.id) || typeof value.type !== 'string') return undefined
  const checks = Object.hasOwn(known, value.type) ? known[value.type as Message['type']] : undefined
  return checks !== undefined && hasFields(value, checks) ? (value as unknown as Message) : undefined
}

/** Changes what the other side would refuse. */
export function bounded(written: string): string {
  const text = written.replace(control, ' ')
  return text.length <= maxMessage ? text : `${text.slice(0, maxMessage - 3)}...`
}

export function boundedFindings<Code>(found: Found<Code>): Found<Code> {
  return found
    .slice(0, maxList)
    .map(({ code, message }) => ({ code, message: bounded(message).slice(0, 2_048) }))
}

function hasFields(value: unknown, checks: Readonly<Record<string, Check>>): boolean {
  return isObject(value) && Object.entries(checks).every(([name, check]) => check(value[name]))
}

function listOf(check: Check, longest: number): Check {
  return (value) => Array.isArray(value) && value.length <= longest && value.every((one) => check(one))
}

function optional(check: Check): Check {
  return (value) => value === undefined || check(value)
}

function isObject(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
