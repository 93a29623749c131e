/** Formats checkpoints and errors, as lines for people and as objects for `--json`. */
import type { Checkpoint, CreatedCheckpoint, DiskReason, ListedCheckpoint } from '../index.js'
import type { Message, Output } from './output.js'
import { exitStatus, statusOf } from './exit_status.js'
import { labelNote, labelTexts } from './labels.js'
import { type Column, tableLines } from './table.js'
import { formatExactTime, formatSize, formatTime } from './values.js'

export function checkpointMessage(checkpoint: Checkpoint | ListedCheckpoint): Message {
  return { type: 'checkpoint', ...checkpoint }
}

/** The result of a saving command: the checkpoint, its size and its path. */
export function savedLines(checkpoint: Checkpoint, verb: string): string[] {
  const { vm, name, path, memoryBytes, storedBytes, disks = [] } = checkpoint
  const sizes = `${formatSize(memoryBytes)} of RAM, ${formatSize(storedBytes)} on disk`
  const snapshots = disks.map(({ snapshot }) => `  ${snapshot}`)
  return [`${verb} ${vm}/${name}: ${sizes}`, `  ${path}`, ...snapshots]
}

/** The state of a suspended VM is always written on the disk. */
const diskReasons: Readonly<Record<Exclude<DiskReason, 'suspend'>, string>> = {
  'memory-size-unknown':
    "the size of the guest's RAM is not known, because this bhyve has written no checkpoint yet",
  'path-too-long': 'the path of the memory stage is too long for this bhyve',
  'memory-stage-busy': 'another process holds the lock of the memory stage',
  'memory-stage-full': 'the memory stage is full',
  'host-memory': 'the host has too little free memory',
  'not-visible': 'bhyve cannot write into the memory stage',
  'filled-up': 'the memory stage filled up during the save, so the guest was frozen twice',
}

/** Why bhyve did not write into the memory stage. Undefined if it did, or was not to. */
export function diskReasonText({ diskReason }: CreatedCheckpoint): string | undefined {
  if (diskReason === undefined || diskReason === 'suspend') return undefined
  return `written on the disk: ${diskReasons[diskReason]}`
}

function columnsFor(output: Output): Column[] {
  const paint = (state: string): string =>
    output.paint(/^(damaged|foreign)/.test(state) ? 'bad' : 'good', state)
  return [
    { title: 'VM' },
    { title: 'NAME' },
    { title: 'STATE', paint },
    { title: 'CREATED', optional: 3 },
    { title: 'RAM', right: true, optional: 1 },
    { title: 'DISK', right: true, optional: 2 },
    { title: 'NOTES', wraps: true },
  ]
}

/** Listing reads no content, so a complete checkpoint is verified only if that is recorded. */
function stateText({ state, verifiedAt }: ListedCheckpoint): string {
  if (state !== 'complete') return state
  return verifiedAt === undefined ? 'complete (not verified)' : `verified ${formatTime(verifiedAt)}`
}

export function checkpointTable(checkpoints: readonly ListedCheckpoint[], output: Output): string[] {
  const rows = checkpoints.map((one) => [
    one.vm,
    one.name,
    stateText(one),
    formatTime(one.createdAt),
    formatSize(one.memoryBytes),
    formatSize(one.storedBytes),
    [...notesOf(one), labelNote(one.labels)].filter((note) => note !== '').join(', '),
  ])
  const hasNotes = rows.some((row) => row.at(-1) !== '')
  const columns = columnsFor(output).map((column) =>
    column.title === 'NOTES' && !hasNotes ? { ...column, optional: 0 } : column,
  )
  return tableLines(columns, rows, output)
}

function notesOf(checkpoint: ListedCheckpoint): string[] {
  const { poweredOff = false, restoredAt, pinned = false, disks, move } = checkpoint
  const notes = [
    poweredOff && restoredAt === undefined && !isMoved(move) ? 'suspended' : '',
    restoredAt === undefined ? '' : 'restored',
    pinned ? 'pinned' : '',
    disks === undefined ? '' : 'disks',
    move === undefined ? '' : moveNote(move),
  ]
  return notes.filter((note) => note !== '')
}

type Move = Checkpoint['move']

/** The VM cannot be restored from such a copy. */
function isMoved(move: Move): boolean {
  return move !== undefined && move.state !== 'released'
}

const moveNotes: Record<NonNullable<Move>['state'], string> = {
  arriving: 'arriving from',
  released: 'moved from',
  'not-started': 'not started, from',
  'moved-to': 'in doubt, moved to',
  moved: 'moved to',
}

function moveTexts(move: Move): string[] {
  return move === undefined ? [] : [`${moveNote(move)} (${move.id})`]
}

function moveNote({ state, host }: NonNullable<Move>): string {
  return `${moveNotes[state]} ${host}`
}

export function checkpointLines(checkpoint: ListedCheckpoint): string[] {
  const { vm, name, path, createdAt, memoryBytes, storedBytes, cpus, devices, problems } = checkpoint
  const { id, labels, dialect, host, disks = [], restores = [], argumentsRecorded = false, move } = checkpoint
  const facts: [string, string][] = [
    ['checkpoint', `${vm}/${name}`],
    ['id', id ?? '-'],
    ['state', stateText(checkpoint)],
    ['path', path],
    ['created', formatExactTime(createdAt)],
    ['RAM', formatSize(memoryBytes)],
    ['on disk', formatSize(storedBytes)],
    ['vCPUs', String(cpus ?? '-')],
    ['devices', devices?.join(', ') ?? '-'],
    ...(dialect === undefined ? [] : [['dialect', dialect] as [string, string]]),
    ...(host === undefined ? [] : [['host', hostText(host)] as [string, string]]),
    ...disks.map(({ path: disk, snapshot }): [string, string] => ['disk', `${disk} (${snapshot})`]),
    ...(argumentsRecorded ? [['arguments', 'recorded'] as [string, string]] : []),
    ...moveTexts(move).map((text): [string, string] => ['move', text]),
    ...labelTexts(labels).map((text): [string, string] => ['label', text]),
    ...restores.map(({ at, again }): [string, string] => [
      'restored',
      `${formatExactTime(at)}${again ? ' (again)' : ''}`,
    ]),
    ['notes', notesOf(checkpoint).join(', ') || '-'],
    ...problems.map(({ code, message }): [string, string] => ['problem', `${code}: ${message}`]),
  ]
  return facts.map(([fact, value]) => `${fact.padEnd(12)}${value}`)
}

/** Early manifests have no host name. */
function hostText({ name, release, cpuModel }: NonNullable<Checkpoint['host']>): string {
  return [name, release, cpuModel].filter((text) => text !== '').join(', ')
}

interface Failed {
  status: number
  message: Message
  lines: string[]
}

/** Describes an error for the output, with the exit status of its family. */
export function describeFailure(
  error: unknown,
  command: string | undefined,
  program = 'bhyve-checkpoint',
): Failed {
  const { code, message, details } = factsOf(error)
  const isUsage = code === 'ERR_USAGE'
  const status = isUsage ? exitStatus.usage : statusOf(code)
  const hint = isUsage
    ? `Run '${program} ${command ?? ''} --help' for help`.replace('  ', ' ')
    : hintFor(code, message)
  const lines = [`${program}: ${message}${isUsage ? '' : ` (${code})`}`, ...(hint === '' ? [] : [hint])]
  return { status, message: { type: 'error', code, message, ...details, exitStatus: status }, lines }
}

function factsOf(error: unknown): { code: string; message: string; details: object } {
  if (!(error instanceof Error)) return { code: 'ERR_SYSTEM', message: String(error), details: {} }
  const known = Object.fromEntries(Object.entries(error)) as { code?: string; name?: string }
  const { code = 'ERR_SYSTEM', name: _, ...details } = known
  return { code, message: error.message, details }
}

/** A library message that has its own advice gets no second one. */
function hintFor(code: string, message: string): string {
  const uid = process.geteuid?.() ?? 0
  if (code !== 'ERR_PERMISSION' || uid === 0 || /\. Run [a-z]/.test(message)) return ''
  return `Run the command as root, or as the user that runs bhyve and owns the checkpoints (you are uid ${String(uid)})`
}
